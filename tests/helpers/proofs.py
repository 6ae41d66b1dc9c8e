"""How each protection of SECURITY.md is taken away, so that the test that holds it can be seen to fail."""

from typing import NamedTuple


class Proof(NamedTuple):
    """A protection taken away: the test must fail then."""

    test: str
    file: str = ""
    there: str = ""
    instead: str = ""


SCANNED = "tests/test_security.py::"
PROOFS = (
    # That the scans see what they look for is tested above.
    Proof(f"{SCANNED}test_no_dangerous_call"),
    Proof(f"{SCANNED}test_a_run_writes_down_no_secret"),
    Proof(
        f"{SCANNED}test_no_template_switches_escaping_off",
        "filtering/reports/templates/page.html",
        "<body",
        "<script></script><body",
    ),
    Proof(f"{SCANNED}test_servers_listen_on_loopback", "miniature/server.py", '("127.0.0.1", port)', '("0.0.0.0", port)'),
    Proof(
        "tests/owseg/test_encoders.py::test_code_in_a_file_is_refused_and_not_run",
        "owseg/weights.py",
        "weights_only=True",
        "weights_only=False",
    ),
    Proof(
        "tests/owseg/test_published.py::test_nothing_in_a_file_is_run",
        "owseg/published.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
    ),
    Proof(
        "tests/filtering/images/test_guard.py::test_an_image_that_takes_too_long",
        "filtering/images/guard.py",
        "signal.setitimer(signal.ITIMER_PROF, config.max_seconds)",
        "pass",
    ),
    Proof(
        "tests/filtering/images/test_guard.py::test_memory_is_limited",
        "filtering/images/guard.py",
        "resource.setrlimit(",
        "print(",
    ),
    Proof(
        "tests/filtering/images/test_resize_hostile.py::test_hostile_images",
        "filtering/images/resize.py",
        "width * height > self._config.max_area",
        "False",
    ),
    Proof(
        "tests/filtering/images/test_codings.py::test_bombs_are_stopped",
        "filtering/images/codings.py",
        "unpacker.decompress(body, most + 1)",
        "unpacker.decompress(body)",
    ),
    Proof(
        "tests/filtering/images/test_addresses.py::test_no_spelling_of_an_own_address_is_reached",
        "filtering/images/addresses.py",
        "or _is_public(address)",
        "or True",
    ),
    Proof(
        "tests/filtering/images/test_addresses.py::test_the_socket_is_refused_even_if_all_else_lets_an_address_pass",
        "filtering/images/resolver.py",
        "self._gate.check(",
        "str(",
    ),
    Proof(
        "tests/filtering/images/test_fetch_hostile.py::test_other_schemes_are_not_opened",
        "filtering/url.py",
        'not in ("http", "https")',
        'in ("",)',
    ),
    Proof(
        "tests/filtering/images/test_fetch_hostile.py::test_proxies_of_the_environment_are_not_used",
        "filtering/images/fetch.py",
        "trust_env=False",
        "trust_env=True",
    ),
    Proof(
        "tests/filtering/images/test_fetch_hostile.py::test_no_cookie_is_sent_back",
        "filtering/images/fetch.py",
        "aiohttp.DummyCookieJar()",
        "aiohttp.CookieJar(unsafe=True)",
    ),
    Proof(
        "tests/filtering/reports/test_corpus.py::test_hostile_captions_are_inert",
        "filtering/reports/parts.py",
        "autoescape=True",
        "autoescape=False",
    ),
    Proof(
        "tests/filtering/reports/test_download.py::test_hostile_hosts_and_statuses_are_inert",
        "filtering/reports/parts.py",
        "autoescape=True",
        "autoescape=False",
    ),
    Proof(
        "tests/cluster/test_session.py::test_a_local_session_protects_itself_and_leaves_nothing_in_the_home_folder",
        "cluster/session.py",
        'if local and "RAY_AUTH_MODE" not in os.environ:',
        "if False:",
    ),
    Proof(
        "tests/cluster/test_deploy_files.py::test_a_cluster_file_keeps_work_off_the_head_and_the_port_closed",
        "ray_cluster.yaml",
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
    ),
    Proof(
        "tests/cluster/test_deploy_files.py::test_kubernetes_pods_ask_for_what_the_image_holds",
        "deploy/kuberay.yaml",
        "mode: token",
        "mode: disabled",
    ),
    Proof(
        "tests/storage/test_private.py::test_a_folder_that_others_can_write_to_holds_no_copy",
        "storage/copies.py",
        "make_private(private)",
        "pass",
    ),
    Proof(
        "tests/filtering/test_secrets.py::test_secrets_are_masked",
        "filtering/secrets.py",
        "for pattern in _PATTERNS:",
        "for pattern in ():",
    ),
    Proof(
        "tests/pipelines/app/test_masked_output.py::test_what_is_printed_or_logged_shows_no_secret",
        "pipelines/app/masked_output.py",
        "masked(with_urls(text))",
        "with_urls(text)",
    ),
    Proof(
        "tests/pipelines/app/test_masked_output.py::test_a_traceback_shows_no_secret",
        "pipelines/app/masked_output.py",
        "masked(with_urls(text))",
        "with_urls(text)",
    ),
    Proof(
        "tests/pipelines/app/test_masked_output.py::test_records_of_a_run_hold_no_secret_and_another_one_goes_on",
        "filtering/secrets.py",
        "        return masked(value)",
        "        return value",
    ),
    Proof(
        "tests/filtering/captions/test_secret_source.py::test_secrets_of_a_source_are_written_nowhere_and_may_change",
        "filtering/captions/read_pass.py",
        '"path": masked(part.path)',
        '"path": part.path',
    ),
    Proof(
        "tests/cluster/test_tracking.py::test_secrets_are_in_no_record_and_a_new_password_goes_on",
        "cluster/mlflow_runs.py",
        "text = masked(str(value))",
        "text = str(value)",
    ),
    Proof(
        "tests/storage/test_client.py::test_no_credential_travels_with_a_store",
        "storage/client.py",
        "def __getstate__(self)",
        "def unused(self)",
    ),
    Proof(
        "tests/test_audit.py::test_a_vulnerable_version_fails", "tools/audit.py", "    return 1\n\n\nif", "    return 0\n\n\nif"
    ),
    Proof(
        "tests/pipelines/test_playground.py::test_photos_are_bounded_before_they_are_decoded",
        "pipelines/segmenting/playground.py",
        "if width * height > MAX_PIXELS:",
        "if False:",
    ),
    Proof(
        "tests/pipelines/test_playground.py::test_an_address_that_others_reach_is_known",
        "pipelines/playground.py",
        "def _is_loopback(host: str) -> bool:",
        "def _is_loopback(host: str) -> bool:\n    return True",
    ),
)
