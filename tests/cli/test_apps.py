"""The app is found by name, by variable, by Celery; what is wrong with it is one line that names the place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Cli


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real process in the working folder."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_same_verbs_below_celery(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWSTONE_APP")
    result = run("celery", "-A", "shop", "flowstone", "asset", "ls")
    assert result.returncode == 0, result.stderr
    assert "shop.revenue  shop.orders" in result.stdout
    missing = run("celery", "-A", "shop", "flowstone", "asset", "get", "orders")
    assert missing.returncode == 3
    assert missing.stderr.startswith("FS-6003")


def test_ctrl_c_leaves_the_run_alone_and_exits_130(project: Path) -> None:
    command = [sys.executable, "-m", "flowstone_celery.cli.main", "asset", "run", "orders", "--queue", "etl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run ")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The run goes on. flowstone run wait" in told
    (row,) = map(json.loads, run("flowstone_celery.cli.main", "run", "ls", "--json").stdout.splitlines())
    assert row["status"] == "pending"


def test_help_of_celery_lists_us_and_loads_nothing_heavy(project: Path) -> None:
    loads = "import sys; sys.argv = ['celery', '--help']\nfrom celery.bin.celery import main\ntry: main()\nexcept SystemExit: pass\n"
    heavy = "print([name for name in ('sqlalchemy', 'psycopg', 'pydantic', 'rich', 'alembic') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", loads + heavy], capture_output=True, text=True, check=True, timeout=60
    )
    assert "flowstone" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["-A", "shop", "asset", "ls"], ["asset", "ls", "-A", "shop:fs"]])
def test_app_may_be_named_before_and_behind_the_verb(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.delenv("FLOWSTONE_APP")
    assert "shop.orders" in cli(*arguments).stdout


def test_app_may_stand_in_the_file_env(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWSTONE_APP")
    (project / ".env").write_text("FLOWSTONE_APP=shop\n")
    assert "shop.orders" in cli("asset", "ls").stdout


def test_no_app_at_all_exits_2_and_names_what_is_here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWSTONE_APP")
    result = cli("asset", "ls")
    assert result.exit_code == 2
    assert "FLOWSTONE_APP" in result.stderr
    assert "Here are: shop." in result.stderr


def test_module_that_is_not_there_exits_2_and_the_nearest_is_named(cli: Cli) -> None:
    result = cli("-A", "shob", "asset", "ls")
    assert result.exit_code == 2
    assert "Did you mean 'shop'?" in result.stderr


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("import os\nimport nothing_of_this_name\n", "nothing_of_this_name' (shop.py:2)"),
        ("def f(:\n", "SyntaxError: invalid syntax (shop.py:1)"),
        ("x = 1\n\ny = x.missing\n", "AttributeError: 'int' object has no attribute 'missing' (shop.py:3)"),
        ("raise SystemExit(3)\n", "SystemExit: 3 (shop.py:1)"),
    ],
)
def test_broken_module_is_one_line_with_file_and_line(cli: Cli, project: Path, page: str, says: str) -> None:
    (project / "shop.py").write_text(page)
    result = cli("asset", "ls")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in cli("asset", "ls", "-v").stderr


def test_wrong_declaration_comes_out_as_it_was_raised(cli: Cli, project: Path) -> None:
    page = (project / "shop.py").read_text()
    (project / "shop.py").write_text(page.replace("@fs.asset\ndef report", "@fs.asset(retrys=2)\ndef report"))
    result = cli("asset", "ls")
    assert result.exit_code == 2
    assert result.stderr.startswith("FS-1005")
    assert "Did you mean 'retries'?" in result.stderr


def test_app_without_a_flowstone_exits_2_and_says_what_to_add(cli: Cli, project: Path) -> None:
    (project / "shop.py").write_text("from celery import Celery\napp = Celery('shop')\n")
    result = cli("asset", "ls")
    assert result.exit_code == 2
    assert "fs = FlowStone(app)" in result.stderr


def test_module_without_celery_serves_inline(cli: Cli, project: Path) -> None:
    (project / "shop.py").write_text(
        "from flowstone_celery import FlowStone\nfs = FlowStone(namespace='shop', mode='inline')\n"
        "@fs.asset\ndef orders():\n    return 1\n"
    )
    assert cli("asset", "run", "orders").exit_code == 0
    assert cli("asset", "get", "orders").stdout == "1\n"


def test_modules_of_celerys_discovery_are_found(cli: Cli, project: Path) -> None:
    (project / "shop.py").write_text(
        "from celery import Celery\nfrom flowstone_celery import FlowStone\n"
        "app = Celery('shop', include=['sales'])\nfs = FlowStone(app)\n"
    )
    (project / "sales.py").write_text("from shop import fs\n@fs.asset\ndef invoices():\n    return []\n")
    assert "shop.invoices" in cli("asset", "ls").stdout
    (project / "sales.py").write_text("import nothing_of_this_name\n")
    sys.modules.pop("sales")
    sys.modules.pop("shop")
    broken = cli("asset", "ls")
    assert broken.exit_code == 2
    assert "sales.py:1" in broken.stderr


def test_unknown_verb_exits_2_with_the_nearest(cli: Cli) -> None:
    result = cli("doktor")
    assert result.exit_code == 2
    assert "Did you mean 'doctor'?" in result.stderr
    assert "Did you mean 'status'?" in cli("asset", "statsu").stderr


def test_fault_of_our_own_is_no_traceback_either(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowstone_celery.cli.version._version", lambda name: 1 / 0)
    result = cli("version")
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.stderr


def test_config_shows_where_each_value_comes_from_and_no_password(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWSTONE_SECRET_KEYS", "geheim")
    result = cli("config", "show", "--source", "--changed")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("FLOWSTONE_SECRET_KEYS"))
    assert line.split() == ["FLOWSTONE_SECRET_KEYS", "****", "FLOWSTONE_SECRET_KEYS"]
    assert "geheim" not in result.stdout


def test_wrong_setting_exits_2(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_LEASE_SECONDS", "soon")
    result = cli("run", "ls")
    assert result.exit_code == 2
    assert "FLOWSTONE_LEASE_SECONDS" in result.stderr
