from __future__ import annotations

import pytest

from partcraft_lit.loggers import csv_logger, has_wandb_key, wandb_logger


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_key_is_seen_in_the_environment_and_in_netrc(monkeypatch, tmp_path):
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not has_wandb_key()


def test_a_broken_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine")
    assert not has_wandb_key()


def test_without_a_key_wandb_logs_offline_into_the_run_folder_and_says_nothing(tmp_path, capfd):
    folder = tmp_path / "run-1"
    folder.mkdir()
    logger = wandb_logger(folder, project="p", mode="auto", tags=("a",))
    logger.log_metrics({"x": 1.0}, step=0)
    logger.experiment.finish()
    assert list(folder.glob("wandb/offline-run-*/run-run-1.wandb"))
    assert logger.version == "run-1"
    assert capfd.readouterr().out == ""


def test_csv_starts_a_new_version_each_time(tmp_path):
    for version in ("version_0", "version_1"):
        logger = csv_logger(tmp_path)
        logger.log_metrics({"x": 1.0}, step=0)
        logger.save()
        assert (tmp_path / "csv" / version / "metrics.csv").is_file()
