"""Installers and disk images: fetched, checked, and put in place so that nothing half-made is ever served."""
