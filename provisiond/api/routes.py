"""Every path of the API, in one table: method, path, handler, least role, and what it does."""

from __future__ import annotations

from provisiond.api import (
    actions,
    catalogue,
    console,
    deployments,
    discovery,
    erasures,
    flags,
    hosts,
    media,
    people,
    release_diff,
    releases,
    render,
    rollouts,
    shadow,
    sources,
    templates,
)
from provisiond.api.routing import Route

SSE = "text/event-stream"

ROUTES: list[Route] = [
    # hosts
    Route("GET", "/hosts", hosts.list_hosts, "viewer", "List hosts"),
    Route("POST", "/hosts", hosts.create_host, "operator", "Create one host or many", status=201),
    Route("GET", "/hosts/{name}", hosts.show_host, "viewer", "Show a host"),
    Route("PATCH", "/hosts/{name}", hosts.update_host, "operator", "Change a host"),
    Route("DELETE", "/hosts/{name}", hosts.delete_host, "operator", "Forget a host"),
    Route(
        "POST",
        "/hosts/{name}/actions/{verb}",
        actions.act_on_host,
        "operator",
        "Ask something of a host",
        status=202,
    ),
    Route("POST", "/hosts/{name}/power", actions.power_host, "operator", "Switch a host's power", status=202),
    Route(
        "GET",
        "/hosts/{name}/console",
        console.read_console,
        "operator",
        "Read a host's console",
        media_type="text/plain",
    ),
    Route("GET", "/hosts/{name}/history", hosts.list_history, "viewer", "The history of a host"),
    Route("GET", "/hosts/{name}/events", hosts.follow_host_events, "viewer", "Follow a host", media_type=SSE),
    *deployments.ROUTES,
    Route(
        "GET",
        "/hosts/{name}/parameters",
        templates.show_parameters,
        "viewer",
        "The merged parameters of a host",
    ),
    *render.ROUTES,
    # all hosts
    Route("GET", "/history", hosts.list_events, "viewer", "The history of all hosts"),
    Route("GET", "/events", hosts.follow_events, "viewer", "Follow all hosts", media_type=SSE),
    Route("GET", "/lifecycle", actions.show_lifecycle, "viewer", "The life of a host as data"),
    Route("GET", "/lifecycle/durations", actions.show_durations, "viewer", "How long states took lately"),
    # what hosts are made of
    *catalogue.ROUTES,
    Route("POST", "/media", media.import_medium, "operator", "Import an installation medium", status=202),
    Route("POST", "/images", media.import_image, "operator", "Import a disk image", status=202),
    Route("POST", "/image-builds", media.build_image, "admin", "Build a disk image", status=202),
    Route("GET", "/imports", media.list_imports, "viewer", "Imports of media and images"),
    Route("GET", "/imports/{id}", media.show_import, "viewer", "How far an import is"),
    Route("GET", "/templates", templates.list_templates, "viewer", "The templates of the current release"),
    Route("GET", "/templates/{id:.+}", templates.show_template, "viewer", "A template's text"),
    *rollouts.ROUTES,
    *shadow.ROUTES,
    *discovery.ROUTES,
    *erasures.ROUTES,
    *flags.ROUTES,
    *releases.ROUTES,
    *release_diff.ROUTES,
    *sources.ROUTES,
    # who may do what
    Route("GET", "/whoami", people.show_whoami, "viewer", "Whose token this is"),
    Route("GET", "/users", people.list_users, "admin", "List users"),
    Route("POST", "/users", people.create_user, "admin", "Create a user", status=201),
    Route("GET", "/users/{name}", people.show_user, "admin", "Show a user"),
    Route("PATCH", "/users/{name}", people.update_user, "admin", "Change a user's role"),
    Route("DELETE", "/users/{name}", people.delete_user, "admin", "Remove a user"),
    Route("GET", "/tokens", people.list_tokens, "viewer", "List tokens"),
    Route("POST", "/tokens", people.create_token, "viewer", "Make a token", status=201),
    Route("DELETE", "/tokens/{id}", people.delete_token, "viewer", "Revoke a token"),
]
