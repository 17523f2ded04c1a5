"""Who may come in: TLS, tokens, and the scope that each remote procedure needs.

The one place where a call is admitted is ``Access.admit``; both frontends ask it before they read the request. Neither
a model nor a transport may come in here.
"""
