"""Who may see and do what: roles, SMART scopes, programs and people that ask."""
