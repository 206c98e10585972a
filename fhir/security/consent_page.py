"""The page on which a person lets a program act for her: no script, one form."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import urlsplit

from aiohttp import hdrs, web

_WORDS = {
    "zh": {
        "title": "授权第三方程序",
        "asks": "请求以您的身份读取或修改以下数据:",
        "back": "完成后将返回",
        "login": "登录名",
        "password": "密码",
        "allow": "登录并同意",
        "deny": "拒绝",
        "wrong": "登录名或密码错误。",
    },
    "en": {
        "title": "Let a program act for you",
        "asks": "asks to read or change in your name:",
        "back": "Afterwards you return to",
        "login": "Login",
        "password": "Password",
        "allow": "Sign in and allow",
        "deny": "Refuse",
        "wrong": "Wrong login or password.",
    },
}
_STYLE = """
body { background: #14171c; color: #e8eaee; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 28rem; margin: 10vh auto; }
label, input, button { display: block; width: 100%; box-sizing: border-box; }
input, button { margin: .25rem 0 1rem; padding: .6rem; font: inherit; }
.fault { color: #ffb4a8; }
"""


async def style(_: web.Request) -> web.Response:
    """Answer the style of the page; it allows none inline."""
    return web.Response(text=_STYLE, content_type="text/css")


def render(
    request: web.Request,
    *,
    client: str,
    host: str,
    scopes: Sequence[str],
    fields: Mapping[str, str],
    redirect_uri: str,
    wrong: bool,
) -> web.Response:
    """Return the page; `fields` come back with the form, she returns to `host`."""
    accepted = request.headers.get(hdrs.ACCEPT_LANGUAGE, "zh")
    language = "en" if accepted.strip().lower().startswith("en") else "zh"
    words = _WORDS[language]
    kept = "".join(
        f'<input type="hidden" name="{escape(n)}" value="{escape(v)}">'
        for n, v in fields.items()
    )
    wanted = "".join(f"<li><code>{escape(scope)}</code></li>" for scope in scopes)
    fault = f'<p class="fault" role="alert">{words["wrong"]}</p>' if wrong else ""
    page = f"""<!doctype html>
<html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{words["title"]}</title>
<link rel="stylesheet" href="/auth/authorize.css"></head><body><main>
<h1>{words["title"]}</h1>
<p><strong>{escape(client)}</strong> {words["asks"]}</p><ul>{wanted}</ul>
<p>{words["back"]} <strong>{escape(host)}</strong>.</p>{fault}
<form method="post" action="/auth/authorize">{kept}
<label>{words["login"]}
<input name="login" autocomplete="username" spellcheck="false"></label>
<label>{words["password"]}
<input name="password" type="password" autocomplete="current-password"></label>
<button name="decision" value="allow">{words["allow"]}</button>
<button name="decision" value="deny">{words["deny"]}</button>
</form></main></body></html>"""
    # A browser holds the way back after the form against form-action, too.
    target = urlsplit(redirect_uri)
    policy = (
        "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none';"
        f" form-action 'self' {target.scheme}://{target.netloc}"
    )
    return web.Response(
        text=page,
        content_type="text/html",
        status=401 if wrong else 200,
        headers={"Content-Security-Policy": policy},
    )
