"""MLflow servers over their REST interface, spoken without MLflow's own client.

client     HTTP: typed answers, our errors          wire       what servers say
auth       who we are to a server                   artifacts  files behind a server
server     what a server is and can do              histories  points read by the fastest route
source     a server read                            target     a server written
place      a pack being written                     writing    the calls that write a run
uploads    files put behind a server            records    models, traces: what belongs to no run
homes      experiments told by their tags       here       what of ours is on a server
objects    the frame of what writes objects     waiting    names of what came later, set right
registry   registered models, prompts           models     logged models
"""

from __future__ import annotations

from mlmigrate.adapters.mlflow.rest.source import open_source
from mlmigrate.adapters.mlflow.rest.target import open_target

__all__ = ["open_source", "open_target"]
