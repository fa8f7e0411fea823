"""HTTP: routes, request bodies, query parameters, responses, errors, authentication, the server."""
