"""What an installation decides about the relay. Values arrive from the caller."""

from dataclasses import dataclass, field
from pathlib import Path

from node.domain.errors import ErrorKind, NodeError

THING_LIMIT = 20  # characters in a `thing` field of a subscription message


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of one relay.

    `push_title` and `push_note` are all the words that WeChat ever gets: they
    hold no name, no organ and no grade. `event_token` and `event_aes_key`
    belong to WeChat's message push; without a token that door stays shut.
    """

    dsn: str = field(repr=False)
    hook_secret: bytes = field(repr=False)
    key_file: Path
    app_id: str
    app_secret: str = field(repr=False)
    template_id: str
    department_phone: str
    host: str = "127.0.0.1"
    port: int = 8090
    wechat_base_url: str = "https://api.weixin.qq.com"
    page: str = "pages/report/index"
    push_title: str = "检查报告已更新"
    push_note: str = "点击查看，如有疑问请联系医院"
    template_fields: tuple[str, str, str] = ("thing1", "date2", "thing3")
    event_token: str = field(default="", repr=False)
    event_aes_key: str = field(default="", repr=False)
    wechat_timeout_s: float = 10.0
    bind_answer_s: float = 0.3
    session_idle_s: float = 15 * 60
    retention_days: int = 90

    def __post_init__(self) -> None:
        """Refuse what WeChat would refuse later, when a patient waits."""
        for name, value in (("title", self.push_title), ("note", self.push_note)):
            if not 0 < len(value) <= THING_LIMIT:
                raise NodeError(
                    f"wechat.push_{name}: 1 to {THING_LIMIT} characters",
                    ErrorKind.SETTING,
                )
        kinds = tuple(name.rstrip("0123456789") for name in self.template_fields)
        if kinds != ("thing", "date", "thing"):
            raise NodeError(
                "wechat.template_fields: a thing, a date and a thing",
                ErrorKind.SETTING,
            )
        if len(self.hook_secret) < 16:
            raise NodeError("relay.hook_secret: at least 16 bytes", ErrorKind.SETTING)
