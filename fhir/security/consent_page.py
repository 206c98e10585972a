"""The page on which a person lets a program act for her: no script, one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode, urlsplit

from aiohttp import hdrs, web

from fhir.security.patients import Choice, Choices
from node.domain.scopes import LETTERS, Context, Scope

SIGN_ON_PATH = "/auth/oidc/start"
_WORDS = {
    "zh": {
        "title": "授权第三方程序",
        "asks": "请求以您的身份读取或修改以下数据:",
        "openid": "您的身份：账号编号与医师记录",
        "online_access": "在您当班期间（最长 12 小时）无需再次登录",
        "offline_access": "您离开后仍可使用（最长 90 天，管理员可随时收回）",
        "back": "完成后将返回",
        "login": "登录名",
        "password": "密码",
        "allow": "登录并同意",
        "agree": "同意",
        "deny": "拒绝",
        "wrong": "登录名或密码错误。",
        "person": "当前登录：",
        "other": "换一个账号",
        "sign_on": "使用医院统一身份登录",
        "pick": "选择患者",
        "pick_lead": "该程序只能看到您选择的这一位患者。",
        "pick_wide": "程序将从您选择的患者开始；它还请求了其他患者的数据。",
        "patient": "仅限一位患者",
        "user": "您可见的全部患者",
        "c": "新建",
        "r": "读取",
        "u": "修改",
        "d": "删除",
        "s": "检索",
        "and": "、",
        "all": "全部资料",
        "accession": "检查号",
        "find": "查找",
        "none": "没有符合的患者。",
        "male": "男",
        "female": "女",
    },
    "en": {
        "title": "Let a program act for you",
        "asks": "asks to read or change in your name:",
        "openid": "who you are: the id of your account and your Practitioner",
        "online_access": "to go on without asking while you are at work"
        " (12 hours at most)",
        "offline_access": "to go on when you have left (90 days at most; an"
        " administrator can end it at any time)",
        "back": "Afterwards you return to",
        "login": "Login",
        "password": "Password",
        "allow": "Sign in and allow",
        "agree": "Allow",
        "deny": "Refuse",
        "wrong": "Wrong login or password.",
        "person": "Signed in as",
        "other": "Use another account",
        "sign_on": "Sign in with the hospital's account",
        "pick": "Choose a patient",
        "pick_lead": "The program will see this one patient only.",
        "pick_wide": "The program begins with this patient; it asks for others, too.",
        "patient": "of one patient",
        "user": "of all patients whom you see",
        "c": "create",
        "r": "read",
        "u": "change",
        "d": "delete",
        "s": "search",
        "and": ", ",
        "all": "everything",
        "accession": "Accession number",
        "find": "Find",
        "none": "No patient fits.",
        "male": "male",
        "female": "female",
    },
}
_NOTICES = {
    "zh": {
        "title": "未能登录",
        "again": "返回登录页",
        "no-role": "您的账号在本系统没有任何角色。请联系管理员。",
        "closed": "您在本系统的账号已停用。请联系管理员。",
        "login-taken": "该登录名属于本系统已有的账号。请管理员将其与您的统一身份关联。",
        "denied": "统一身份系统拒绝了本次登录。",
        "state": "本次登录已过期，或不是在此浏览器中开始的。请重新登录。",
        "away": "医院统一身份系统没有响应。请稍后再试，或使用本地账号。",
        "other": "统一身份系统的回答不可信，未予登录。管理员可在日志中查看原因。",
    },
    "en": {
        "title": "You are not signed in",
        "again": "Back to the sign-in page",
        "no-role": "Your account has no role in this system. Ask an administrator.",
        "closed": "Your account in this system is disabled. Ask an administrator.",
        "login-taken": "This login belongs to an account of this system. Ask an"
        " administrator to link it with your hospital account.",
        "denied": "The hospital's sign-on refused.",
        "state": "This sign-in took too long, or was begun in another browser. Sign in"
        " again.",
        "away": "The hospital's sign-on does not answer. Try later, or use a local"
        " account.",
        "other": "The answer of the hospital's sign-on cannot be trusted."
        " Administrators find the reason in the log.",
    },
}
_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_UNAVAILABLE = frozenset({"away", "host"})
_STYLE = """
:root { color-scheme: dark; font: 16px/1.5 system-ui, 'Noto Sans CJK SC', sans-serif; }
body { margin: 0; background: #0b0e12; color: #e9eef3; }
main { box-sizing: border-box; max-width: 32rem; margin: 8vh auto; padding: 1.6rem 2rem;
  background: #12171d; border: 1px solid #2b3540; border-radius: 16px; }
h1 { margin: 0 0 .6rem; font-size: 1.5rem; }
label, input, button, .button { display: block; width: 100%; box-sizing: border-box; }
label { color: #aab6c2; }
input, button, .button { margin: .3rem 0 .9rem; padding: .6rem .8rem; font: inherit;
  color: #e9eef3; border: 1px solid #46535f; border-radius: 7px; }
input { background: #0b0e12; }
button { background: #1a2129; cursor: pointer; }
button.first, .button { background: #1668ad; border-color: #3c8fd6; color: #fff;
  font-weight: 600; text-align: center; text-decoration: none; }
button:hover, .button:hover { border-color: #e9eef3; }
.fault { color: #ff9482; }
.wanted { padding-left: 1.2rem; }
.wanted code { color: #aab6c2; font-size: .85em; }
.patients { list-style: none; padding: 0; max-height: 50vh; overflow: auto; }
.patients button { text-align: start; margin: 0 0 .4rem;
  font-variant-numeric: tabular-nums; }
.patients span { display: inline-block; margin-inline-end: 1em; }
.patients span:first-child { font-weight: 600; min-width: 3em; }
:focus-visible { outline: 2px solid #6db7f2; outline-offset: 2px; }
"""


@dataclass(frozen=True)
class Shown:
    """What stands on the page; `fields` come back with the form.

    `person` is who has signed in already; `choices` makes it the page on which she
    picks a patient.
    """

    client: str
    host: str
    scopes: Sequence[Scope]
    beside: Sequence[str]
    fields: Mapping[str, str]
    redirect_uri: str
    wrong: bool = False
    person: str | None = None
    sign_on: bool = False
    passwords: bool = True
    choices: Choices | None = None


async def style(_: web.Request) -> web.Response:
    """Answer the style of the page; it allows none inline."""
    return web.Response(text=_STYLE, content_type="text/css")


def _language(request: web.Request) -> str:
    accepted = request.headers.get(hdrs.ACCEPT_LANGUAGE, "zh")
    return "en" if accepted.strip().lower().startswith("en") else "zh"


def notice(request: web.Request, reason: str) -> web.Response:
    """Return the page that says why somebody was not signed in."""
    language = _language(request)
    words = _NOTICES[language]
    told = words.get(reason, words["other"])
    body = f"""<p class="fault" role="alert">{told}</p>
<p><a class="button" href="/">{words["again"]}</a></p>"""
    return web.Response(
        text=_whole(language, words["title"], body),
        content_type="text/html",
        status=503 if reason in _UNAVAILABLE else 403,
        headers={"Content-Security-Policy": _POLICY},
    )


def _whole(language: str, title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/auth/authorize.css"></head><body><main>
<h1>{title}</h1>
{body}
</main></body></html>"""


def render(request: web.Request, shown: Shown) -> web.Response:
    """Return the page in the language of the browser."""
    language = _language(request)
    words = _WORDS[language]
    picking = shown.choices is not None
    body = _picker(words, shown) if picking else _consent(words, shown)
    title = words["pick" if picking else "title"]
    # A browser holds the way back after the form against form-action, too.
    target = urlsplit(shown.redirect_uri)
    policy = f"{_POLICY}; form-action 'self' {target.scheme}://{target.netloc}"
    return web.Response(
        text=_whole(language, title, body),
        content_type="text/html",
        status=401 if shown.wrong else 200,
        headers={"Content-Security-Policy": policy},
    )


def _consent(words: Mapping[str, str], shown: Shown) -> str:
    wanted = [_told(words, scope) for scope in shown.scopes]
    wanted += [words[word] for word in shown.beside]
    asked = "".join(f"<li>{item}</li>" for item in wanted)
    fault = f'<p class="fault" role="alert">{words["wrong"]}</p>' if shown.wrong else ""
    return f"""<p><strong>{escape(shown.client)}</strong> {words["asks"]}</p>
<ul class="wanted">{asked}</ul>
<p>{words["back"]} <strong>{escape(shown.host)}</strong>.</p>{fault}
{_sign_on(words, shown)}{_form(shown, _who(words, shown))}"""


def _told(words: Mapping[str, str], scope: Scope) -> str:
    """Return what a scope means, with its own words beside."""
    does = words["and"].join(words[x] for x in LETTERS if x in scope.letters)
    kind = words["all"] if scope.kind == "*" else scope.kind
    whose = words.get(scope.context.value, scope.context.value)
    return (
        f"{escape(whose)}: {escape(does)} {escape(kind)}"
        f" <code>{escape(str(scope))}</code>"
    )


def _who(words: Mapping[str, str], shown: Shown) -> str:
    deny = f'<button name="decision" value="deny">{words["deny"]}</button>'
    if shown.person is not None:
        return f"""<p>{words["person"]} <strong>{escape(shown.person)}</strong></p>
<button class="first" name="decision" value="allow">{words["agree"]}</button>{deny}
<button name="decision" value="other">{words["other"]}</button>"""
    if not shown.passwords:
        return deny
    first = "" if shown.sign_on else "first"
    return f"""<label>{words["login"]}
<input name="login" autocomplete="username" spellcheck="false"></label>
<label>{words["password"]}
<input name="password" type="password" autocomplete="current-password"></label>
<button class="{first}" name="decision" value="allow">{words["allow"]}</button>{deny}"""


def _sign_on(words: Mapping[str, str], shown: Shown) -> str:
    if not shown.sign_on or shown.person is not None:
        return ""
    back = f"/auth/authorize?{urlencode(shown.fields)}"
    href = escape(f"{SIGN_ON_PATH}?{urlencode({'back': back})}")
    return f'<a class="button" href="{href}">{words["sign_on"]}</a>'


def _picker(words: Mapping[str, str], shown: Shown) -> str:
    found = shown.choices or Choices(())
    rows = "".join(_row(words, choice) for choice in found.rows)
    listed = f'<ul class="patients">{rows}</ul>' if rows else f"<p>{words['none']}</p>"
    searched = f"""<label>{words["accession"]}
<input name="accession" value="{escape(found.accession)}" spellcheck="false"></label>
<button name="decision" value="allow">{words["find"]}</button>"""
    deny = f'<button name="decision" value="deny">{words["deny"]}</button>'
    wide = any(scope.context is not Context.PATIENT for scope in shown.scopes)
    lead = words["pick_wide" if wide else "pick_lead"]
    return f"""<p><strong>{escape(shown.client)}</strong> — {lead}</p>
{_form(shown, searched)}{_form(shown, f"{listed}{deny}")}"""


def _row(words: Mapping[str, str], choice: Choice) -> str:
    told = (
        choice.name,
        words.get(choice.gender, ""),
        choice.age,
        choice.examined,
        choice.accession,
    )
    parts = "".join(f"<span>{escape(part)}</span>" for part in told if part)
    return (
        f'<li><button name="patient" value="{escape(choice.patient_id)}">'
        f"{parts}</button></li>"
    )


def _form(shown: Shown, inside: str) -> str:
    kept = "".join(
        f'<input type="hidden" name="{escape(n)}" value="{escape(v)}">'
        for n, v in shown.fields.items()
    )
    return f'<form method="post" action="/auth/authorize">{kept}{inside}</form>'
