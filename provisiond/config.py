"""Settings: one TOML file, overridden by PROVISIOND_SECTION__KEY in the environment; an unknown key is an error.

Every key has a description here; docs/configuration.md is generated from them by ``provisiond check-config --document``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from provisiond.errors import ConfigError


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    listen: str = Field("127.0.0.1", description="Address the REST API listens on.")
    port: int = Field(8420, ge=0, le=65535, description="TCP port of the REST API; 0 takes a free one.")
    socket: Path | None = Field(
        None, description="Unix socket the API listens on besides, for its owner and group (mode 0660)."
    )
    tls_cert: Path | None = Field(
        None, description="PEM certificate chain; with tls_key the API speaks HTTPS."
    )
    tls_key: Path | None = Field(None, description="PEM private key of tls_cert.")
    max_body: int = Field(4 << 20, ge=1024, description="Largest request body taken, in bytes.")
    shutdown_seconds: float = Field(
        20.0, gt=0, description="How long a graceful stop waits for steps and requests."
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(
                "tls_cert and tls_key go together: without one of them the API would speak plain HTTP"
            )
        return self


class DatabaseSettings(Section):
    url: str = Field(
        "",
        description="Empty: SQLite in state.dir. Or postgresql://user@host/name; the password may come from PGPASSWORD or ~/.pgpass.",
    )
    pool_size: int = Field(8, ge=1, description="Connections kept to PostgreSQL by each daemon.")


class StateSettings(Section):
    dir: Path = Field(
        Path("/var/lib/provisiond"),
        description="Where the daemon keeps its database, keys, media and consoles.",
    )

    @property
    def key_file(self) -> Path:
        """The encryption keys for BMC passwords, newest first, one a line; mode 0600."""
        return self.dir / "secret.key"

    @property
    def admin_token_file(self) -> Path:
        """Where the first start writes the admin token; mode 0600."""
        return self.dir / "admin.token"

    @property
    def media_dir(self) -> Path:
        return self.dir / "media"

    @property
    def image_dir(self) -> Path:
        return self.dir / "images"

    @property
    def console_dir(self) -> Path:
        return self.dir / "console"

    @property
    def agent_log_dir(self) -> Path:
        """What ramdisks logged, a directory for each host."""
        return self.dir / "agent-logs"

    @property
    def run_dir(self) -> Path:
        """Files of the children the daemon manages (dnsmasq, ansible-runner)."""
        return self.dir / "run"


class BootSettings(Section):
    enabled: bool = Field(True, description="Serve TFTP and HTTP boot to machines.")
    listen: str = Field("0.0.0.0", description="Address of the HTTP boot server; machines must reach it.")  # noqa: S104
    http_port: int = Field(8421, ge=0, le=65535, description="TCP port of HTTP boot; 0 takes a free one.")
    url: str = Field(
        "",
        description="Base URL machines use for HTTP boot, such as http://10.0.0.1:8421; empty: made from listen and http_port.",
    )
    tftp_listen: list[str] = Field(
        ["0.0.0.0"],  # noqa: S104
        description="Addresses (IPv4, IPv6) TFTP listens on; an empty list turns TFTP off.",
    )
    tftp_port: int = Field(69, ge=0, le=65535, description="UDP port of TFTP; 0 takes a free one.")
    tftp_max_transfers: int = Field(1000, ge=1, description="TFTP transfers at once, all clients together.")
    tftp_max_per_client: int = Field(16, ge=1, description="TFTP transfers at once from one address.")
    loader: Literal["ipxe", "grub", "pxelinux"] = Field(
        "ipxe",
        description="What machines are given first: ipxe, grub (shim and GRUB, for Secure Boot) or pxelinux (BIOS only; UEFI gets ipxe).",
    )
    loader_dirs: list[Path] = Field(
        [
            Path("/usr/lib/ipxe"),
            Path("/usr/lib/PXELINUX"),
            Path("/usr/lib/syslinux/modules/bios"),
            Path("/usr/lib/shim"),
            Path("/usr/lib/grub/x86_64-efi-signed"),
        ],
        description="Where the network boot programs are looked for, in order (Debian's packages by default).",
    )
    ramdisk_dir: Path = Field(
        Path("/var/lib/provisiond/ramdisk"),
        description="Where 'provisionctl ramdisk build' puts the ramdisk; or a directory with vmlinuz and initrd.img, filled by hand.",
    )
    image_encoding: Literal["auto", "zstd", "raw"] = Field(
        "auto",
        description="How used blocks of images are kept and sent: zstd (auto, too) or raw, which costs less processor and more network.",
    )
    image_streams_per_subnet: int = Field(
        0,
        ge=0,
        description="Images sent at once to machines of one subnet, where its parameter image_streams says nothing; 0: any number.",
    )
    image_mbps_per_subnet: int = Field(
        0,
        ge=0,
        description="Megabits a second for images to all machines of one subnet, where its parameter image_mbps says nothing; 0: any.",
    )
    token_minutes: float = Field(
        120, gt=0, description="Life of a build token since the machine's last sign of life."
    )
    ticket_minutes: float = Field(
        30,
        gt=0,
        le=1440,
        description="Life of the ticket that the ramdisk is started with: from its boot script until its agent shows it.",
    )
    loop_limit: int = Field(
        3,
        ge=2,
        description="How many times one build may ask for its installer before it counts as a boot loop.",
    )


class EngineSettings(Section):
    workers: int = Field(64, ge=1, description="Steps run at once by this daemon.")
    lease_seconds: float = Field(
        40.0, ge=4, description="Lease of a claimed host; renewed at a quarter of it."
    )
    sweep_seconds: float = Field(2.0, gt=0, description="Longest sleep between two looks for due hosts.")
    per_bmc: int = Field(1, ge=1, description="Steps at once per BMC endpoint.")
    per_hypervisor: int = Field(4, ge=1, description="Steps at once per hypervisor.")
    max_attempts: int = Field(
        6, ge=1, description="Tries of a step before its failure stands until someone acts."
    )
    backoff_seconds: float = Field(
        2.0, gt=0, description="First pause after a failed try; doubles, with jitter."
    )
    backoff_max_seconds: float = Field(300.0, gt=0, description="Longest pause between two tries.")
    power_poll_seconds: float = Field(
        300.0, ge=0, description="How often the power state of resting hosts is recorded; 0 never."
    )


class DhcpSettings(Section):
    driver: str = Field(
        "external", description="dnsmasq (a child of the daemon), or external (your own DHCP server)."
    )
    interfaces: list[str] = Field([], description="Network interfaces dnsmasq answers on.")
    proxy: bool = Field(
        False, description="Proxy mode: another server gives addresses, dnsmasq only the boot options."
    )
    dnsmasq: str = Field("dnsmasq", description="Path of the dnsmasq program.")
    lease_seconds: int = Field(3600, ge=120, description="Life of a lease.")


class HandoverSettings(Section):
    driver: str = Field(
        "none", description="Default handover of hosts whose parameters name none: ansible, script or none."
    )
    ssh_key: Path | None = Field(
        None, description="Private key handover uses; default state.dir/ssh/id_ed25519, made at first start."
    )
    timeout_seconds: float = Field(3600.0, gt=0, description="Longest time one handover run may take.")
    sources: list[str] = Field(
        [],
        description="Directories and git URLs, or their parents, that playbooks and scripts may come from; an empty list allows any.",
    )


class DiscoverySettings(Section):
    max_waiting: int = Field(
        1000,
        ge=1,
        description="Machines that may wait for approval at once: a flood of made-up MACs fills no database.",
    )


class InspectionSettings(Section):
    on_enrol: bool = Field(
        False,
        description="Boot every new host that can boot from the network into the ramdisk to look at its hardware; "
        "its parameter inspect (ramdisk or sensors) wins.",
    )
    tests: list[str] = Field(
        [],
        description="Hardware tests of such a first inspection, by name, or all; a host's parameter tests wins.",
    )
    tests_dir: Path | None = Field(
        None,
        description="Directory of your own hardware tests (docs/hardware.md); one named as a shipped one takes its place.",
    )


class EraseSettings(Section):
    default: Literal["auto", "quick", "full", "none"] = Field(
        "auto",
        description="How release erases disks: auto (the best each disk can do, verified by samples), full (every byte written and read back), "
        "quick (discard and metadata only), none. A host's parameter erase wins, release --erase wins over both.",
    )


class TemplateSettings(Section):
    dir: Path | None = Field(
        None, description="Directory of templates; default: the ones shipped with provisiond."
    )
    source_dirs: list[Path] = Field(
        [],
        description="Directories of this machine below which sources of templates (directories, file:// repositories) may lie.",
    )
    render_seconds: float = Field(2.0, gt=0, description="Longest time one rendering may take.")
    render_bytes: int = Field(1 << 20, ge=1024, description="Largest rendered output.")
    shadow_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that render for a shadow run; 0: as many as there are processors.",
    )


class RolloutSettings(Section):
    prometheus: str = Field(
        "",
        description="Base URL of the Prometheus that metric gates of rollouts ask, such as http://10.0.0.5:9090.",
    )
    graphite: str = Field("", description="Base URL of the Graphite that metric gates of rollouts ask.")
    metric_seconds: float = Field(10.0, gt=0, description="Longest time one metric query may take.")


class ImageSettings(Section):
    recipes: list[Path] = Field(
        [],
        description="Directories with one's own recipes for 'provisionctl image build', looked through before those that come along.",
    )


class NotifySettings(Section):
    driver: str = Field(
        "none",
        description="Who is told what happens: apprise (chat and mail), webhook (signed JSON) or none.",
    )
    urls: list[SecretStr] = Field(
        [],
        description="Where notices go: Apprise's URLs (mailtos://, slack://, ...), or the webhook's http(s) URLs. They are secrets.",
    )
    secret: SecretStr = Field(
        SecretStr(""), description="Key the webhook's body is signed with (HMAC-SHA256); a secret."
    )
    kinds: list[str] = Field(
        [
            "rollout.started",
            "rollout.paused",
            "rollout.waiting",
            "rollout.report",
            "rollout.done",
            "rollout.cancelled",
        ],
        description="Patterns of the kinds of event that are told, such as rollout.* or step.failed.",
    )
    timeout_seconds: float = Field(20.0, gt=0, description="Longest time one notice may take to be taken.")


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    format: Literal["json", "console"] = Field("json", description="json for machines, console for people.")


class Settings(BaseSettings):
    """All settings of the daemon."""

    model_config = SettingsConfigDict(
        env_prefix="PROVISIOND_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = Field(default_factory=ServerSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    state: StateSettings = Field(default_factory=StateSettings)
    boot: BootSettings = Field(default_factory=BootSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    dhcp: DhcpSettings = Field(default_factory=DhcpSettings)
    handover: HandoverSettings = Field(default_factory=HandoverSettings)
    discovery: DiscoverySettings = Field(default_factory=DiscoverySettings)
    inspection: InspectionSettings = Field(default_factory=InspectionSettings)
    erase: EraseSettings = Field(default_factory=EraseSettings)
    templates: TemplateSettings = Field(default_factory=TemplateSettings)
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    images: ImageSettings = Field(default_factory=ImageSettings)
    notify: NotifySettings = Field(default_factory=NotifySettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose tables come in as init arguments."""
        return env_settings, init_settings

    def database_url(self) -> str:
        """URL of the store: sqlite:///... or postgresql+psycopg://..."""
        url = self.database.url
        if not url:
            return f"sqlite:///{self.state.dir / 'provisiond.db'}"
        scheme, sep, rest = url.partition("://")
        drivers = {
            "sqlite": "sqlite",
            "postgresql": "postgresql+psycopg",
            "postgres": "postgresql+psycopg",
        }
        if not sep or scheme.split("+")[0] not in drivers:
            raise ConfigError("database.url must begin with sqlite:// or postgresql://")
        return f"{drivers[scheme.split('+')[0]]}://{rest}"


def load_settings(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings from ``path`` (TOML) and the environment.

    ``overrides`` are tables laid over the file's, as a test or a command-line flag needs. Raises ConfigError that
    names every wrong key.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, table in (overrides or {}).items():
        tables[name] = {**tables.get(name, {}), **table}
    lines = _unknown_in_environment()
    try:
        settings = Settings(**tables)
    except ValidationError as error:
        lines += [f"{'.'.join(map(str, e['loc']))}: {_say(e)}" for e in error.errors()]
    if lines:
        raise ConfigError(f"{path or 'settings'}: " + "; ".join(lines))
    return settings


def require_boot_url(settings: Settings) -> None:
    """Raises ConfigError where the URL machines boot from is neither given nor can be made from ``boot.listen``."""
    boot = settings.boot
    if boot.enabled and not boot.url and boot.listen in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        raise ConfigError(
            "boot.url must say where machines reach HTTP boot, such as http://10.0.0.1:8421, as boot.listen is any address"
        )


def _unknown_in_environment() -> list[str]:
    """Variables that mean to be settings of ours but name no section, which pydantic-settings would pass over."""
    sections = tuple(f"PROVISIOND_{name}__".upper() for name in Settings.model_fields)
    return [
        f"{name}: unknown key in the environment"
        for name in sorted(os.environ)
        if name.upper().startswith("PROVISIOND_") and "__" in name and not name.upper().startswith(sections)
    ]


def _say(error: Any) -> str:
    return (
        "unknown key"
        if error["type"] == "extra_forbidden"
        else str(error["msg"]).removeprefix("Value error, ")
    )


def document() -> str:
    """Every key with its default and meaning, as the Markdown of docs/configuration.md."""
    lines = [
        "# Settings\n",
        "Generated by `provisiond check-config --document`. One TOML file (default `/etc/provisiond/provisiond.toml`); each key can be",
        "set in the environment as `PROVISIOND_SECTION__KEY`, which wins. An unknown key is an error.\n",
    ]
    for name, section in Settings.model_fields.items():
        table = section.annotation
        assert isinstance(table, type) and issubclass(table, Section)
        lines += [f"## [{name}]\n", "| key | default | meaning |", "|---|---|---|"]
        for key, field in table.model_fields.items():
            default = field.get_default(call_default_factory=True)
            lines.append(f"| `{key}` | `{_toml(default)}` | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case SecretStr():
            return '""' if not value.get_secret_value() else '"********"'
        case Path() | str():
            return f'"{value}"'
        case list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            return str(value)
