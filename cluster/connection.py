"""Whether a Ray cluster answers at an address, known within seconds: Ray itself would ask on, or end the process."""

import os

from cluster import InputError

CONNECT_SECONDS = 8.0
VARIABLE = "RAY_ADDRESS"


def given_address(setting: str) -> tuple[str, str]:
    """The address of a running cluster and what gave it, the setting or the environment; ("", "") for a local Ray."""
    address, name = (setting, "session.address") if setting else (os.environ.get(VARIABLE, ""), VARIABLE)
    return ("", "") if address in ("", "local") else (address, name)


def check_cluster(address: str, name: str) -> None:
    """Raise InputError unless a Ray cluster of this version answers at host:port, ray://host:port or "auto"."""
    scheme, mark, rest = address.rpartition("://")
    if mark and scheme != "ray":
        dashboard = " (the address of Ray's dashboard, which `ray job submit` takes)" if scheme.startswith("http") else ""
        raise InputError(f"{name}: '{address}' is no address of a cluster{dashboard}; give host:port, as `ray start` tells it")
    found = _noted_down(name) if address == "auto" else rest
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"{name}: '{address}' is no address of a cluster; give host:port, as `ray start` tells it, or auto")
    reason = _client_server_fault(found) if mark else _cluster_fault(found)
    if reason:
        raise no_cluster(name, address, reason)


def no_cluster(name: str, address: str, reason: str) -> InputError:
    """The error for an address at which there is no cluster."""
    return InputError(f"{name}: no Ray cluster answers at '{address}' ({reason}); start one, correct it, or leave it empty")


def _noted_down(name: str) -> str:
    """The address that `ray start` on this machine left behind."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto") or "")
    except (OSError, ValueError) as error:
        raise no_cluster(name, "auto", str(error).partition(".")[0]) from None


def _cluster_fault(address: str) -> str:
    """Why what listens is no cluster for this process; "" where it is one."""
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with init_grpc_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive
            version = str(ask(gcs_service_pb2.CheckAliveRequest(), timeout=CONNECT_SECONDS).ray_version)
        except grpc.RpcError as error:
            return _reason(error.code().name, error.details() or "")
        except RuntimeError as error:  # Ray's own, for a token that is wanted and not there
            return " ".join(str(error).split())[:200]
    if version != ray.__version__:
        return f"it runs Ray {version or 'of an older version'}, this environment Ray {ray.__version__}: install the same"
    return ""


def _client_server_fault(address: str) -> str:
    """The same for the server of ray:// addresses."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return f"no answer within {CONNECT_SECONDS:g} s"
    return ""


def _reason(code: str, details: str) -> str:
    last = " ".join(details.rpartition("last error: ")[2].split())
    match code:
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return "it asks for another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        case "UNIMPLEMENTED":
            return "what listens there is not Ray's"
        case "DEADLINE_EXCEEDED":
            return f"no answer within {CONNECT_SECONDS:g} s"
        case _ if any(sign in last for sign in ("HTTP/2", "http1", "Socket closed", "recvmsg")):  # it hung up, or answered
            return "what listens there is not Ray's"
        case _:
            return (last.rpartition("Failed to connect to remote host: ")[2] or code)[:200]
