def account(prepared):
    return None
