"""The settings of the fetcher: limits, politeness, and whom it may ask."""

from dataclasses import dataclass, field

from filtering import InputError
from filtering.images.addresses import Gate
from filtering.images.resolver import nameserver_of, target_of
from filtering.url import is_address


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How links are asked for. Limits hold per worker process unless they say otherwise."""

    timeout: float = 20.0
    """Seconds that one image may take in all: redirects, the whole body, further attempts (the waits between not counted)."""
    connect_timeout: float = 5.0
    """Seconds until a connection stands: name look-up, TCP and TLS."""
    first_byte_timeout: float = 10.0
    """Seconds from the start of a request until the headers of its answer are there."""
    max_bytes: int = 32 * 2**20
    """Largest body in bytes, after content decoding; more is refused as "too_large"."""
    max_redirects: int = 10
    """Redirects followed per attempt."""
    attempts: int = 3
    """Requests per link at most: server errors (5xx), 408, 425, 429, name look-up and connection failures are asked again."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles with each further one, with a jitter of half its length."""
    max_wait: float = 30.0
    """Longest wait in seconds for a host that paused; one whose Retry-After asks for more is left alone in this run."""
    concurrency: int = 256
    """Links in flight at once per worker, at the most: fewer while images come faster than they are resized."""
    per_host: int = 8
    """Connections at once to one host, over all workers."""
    per_host_rate: float = 20.0
    """Requests per second to one host, over all workers; 0 = no limit."""
    user_agent: str = "Mozilla/5.0 (compatible; open-world-segmentation/0.1)"
    """User-Agent header; an X-Robots-Tag scoped to an agent applies if the agent's name occurs in it."""
    contact: str = ""
    """A web page or e-mail address for those who run the servers; part of the User-Agent."""
    respect_opt_out: bool = True
    """Refuse images whose X-Robots-Tag header says noai, noimageai, noindex, noimageindex or none."""
    allow: tuple[str, ...] = ()
    """Networks and addresses that may be reached though they are not public, such as "10.0.0.0/8"."""
    connect_to: dict[str, str] = field(default_factory=dict)
    """Where to connect instead: host name or "*.suffix" → "address:port"; the URL and the Host header stay. For mirrors."""
    nameservers: tuple[str, ...] = ()
    """Name servers as "address" or "address:port"; none = the system's."""
    host_failures: int = 10
    """Failures in a row after which a host is left alone for a while."""
    host_pause: float = 30.0
    """Seconds that such a host is left alone; doubles as long as it keeps failing; 0 = never."""
    outage_patience: float = 600.0
    """Seconds to wait for a network on which nobody answers, before the run stops; 0 = do not watch for it."""

    def __post_init__(self) -> None:
        positive = (
            *("timeout", "connect_timeout", "first_byte_timeout", "max_bytes", "attempts", "concurrency", "per_host"),
            "host_failures",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: {getattr(self, name)} is not above 0")
        for name in ("max_redirects", "backoff", "max_wait", "per_host_rate", "host_pause", "outage_patience"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        for name in ("user_agent", "contact"):
            if not getattr(self, name).isprintable():
                raise InputError(f"{name}: {getattr(self, name)!r} holds control characters; it must be one line")
        Gate(self.allow)
        for host, target in self.connect_to.items():
            if is_address(host):
                raise InputError(f"connect_to: {host!r} is an address; give the host name that the links carry, or '*.suffix'")
            target_of(target)
        for server in self.nameservers:
            nameserver_of(server)

    @property
    def agent(self) -> str:
        """The User-Agent header with the contact in it."""
        if not self.contact:
            return self.user_agent
        head, bracket, tail = self.user_agent.rpartition(")")
        return f"{head}; +{self.contact})" if bracket and not tail else f"{self.user_agent} (+{self.contact})"
