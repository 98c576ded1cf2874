"""docs/object-stores.md names every variable that is looked at, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = r"(?:AWS|AZURE|GOOGLE|STORAGE|REQUESTS|MLFLOW_S3|MLMIGRATE_S3)_[A-Z0-9_]+"
# botocore's own, and what obstore is kept from
OTHERS = {"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT"}


def in_code():
    text = "".join((ROOT / "src/mlmigrate/storage" / f"{name}.py").read_text() for name in ("access", "cloud_access"))
    found = set(re.findall(rf'"({NAME})"', text))
    # the keys are put together from their ends
    return found | {f"AWS_{end}" for end in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")}


def in_docs():
    text = (ROOT / "docs/object-stores.md").read_text()
    return set(re.findall(rf"`({NAME})`", text))


def test_every_variable_is_told_and_every_told_one_is_looked_at():
    assert in_docs() - OTHERS == in_code() - OTHERS
