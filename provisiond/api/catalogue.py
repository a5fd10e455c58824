"""stub"""

from provisiond.api.routing import Route

ROUTES: list[Route] = []
