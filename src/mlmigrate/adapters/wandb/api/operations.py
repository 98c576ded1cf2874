"""The GraphQL texts for reading.

Every field here is one that W&B's own SDK (0.30, 0.31) asks for.  What it asks in seven requests a run, `read_run`
asks in one; where a server does not take that, its parts are asked for one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

VIEWER = "query Viewer { viewer { id entity username email teams { edges { node { name } } } } }"

_PAGE = "pageInfo { endCursor hasNextPage }"

PROJECTS = f"""
query GetProjects($entity: String, $cursor: String, $perPage: Int) {{
  models(entityName: $entity, after: $cursor, first: $perPage) {{
    {_PAGE}
    edges {{ node {{ id name entityName createdAt }} }}
  }}
}}
"""

PROJECT = """
query GetProject($name: String!, $entity: String!) {
  project(name: $name, entityName: $entity) { id name entityName createdAt }
}
"""

_RUN = """
fragment RunFragment on Run {
  id
  tags
  name
  displayName
  sweepName
  state
  config
  group
  jobType
  commit
  createdAt
  heartbeatAt
  description
  notes
  systemMetrics
  summaryMetrics
  historyLineCount
  user { name username }
  historyKeys
}
"""

RUNS = f"""
query Runs($project: String!, $entity: String!, $cursor: String, $perPage: Int, $order: String, $filters: JSONString) {{
  project(name: $project, entityName: $entity) {{
    runs(filters: $filters, after: $cursor, first: $perPage, order: $order) {{
      edges {{ node {{ ...RunFragment }} cursor }}
      {_PAGE}
    }}
  }}
}}
{_RUN}
"""

RUN = f"""
query Run($project: String!, $entity: String!, $name: String!) {{
  project(name: $project, entityName: $entity) {{
    run(name: $name) {{ ...RunFragment }}
  }}
}}
{_RUN}
"""

PARQUET = """
query RunParquetHistory($entity: String!, $project: String!, $runName: String!, $liveKeys: [String!]!) {
  project(name: $project, entityName: $entity) {
    run(name: $runName) { parquetHistory(liveKeys: $liveKeys) { parquetUrls liveData } }
  }
}
"""

HISTORY_PAGE = """
query HistoryPage($entity: String!, $project: String!, $run: String!, $minStep: Int64!, $maxStep: Int64!,
    $pageSize: Int!) {
  project(name: $project, entityName: $entity) {
    run(name: $run) { history(minStep: $minStep, maxStep: $maxStep, samples: $pageSize) }
  }
}
"""

EVENTS = """
query RunFullHistory($project: String!, $entity: String!, $name: String!, $samples: Int) {
  project(name: $project, entityName: $entity) {
    run(name: $name) { events(samples: $samples) }
  }
}
"""

FILES = f"""
query RunFiles($project: String!, $entity: String!, $name: String!, $fileCursor: String, $fileLimit: Int,
    $fileNames: [String]) {{
  project(name: $project, entityName: $entity) {{
    run(name: $name) {{
      files(names: $fileNames, after: $fileCursor, first: $fileLimit) {{
        edges {{ node {{ name directUrl sizeBytes md5 }} cursor }}
        {_PAGE}
      }}
    }}
  }}
}}
"""

CONSOLE = f"""
query RunConsoleLogPage($entity: String!, $project: String!, $runName: String!, $first: Int, $after: String) {{
  project(name: $project, entityName: $entity) {{
    run(name: $runName) {{
      logLineCount
      logLines(first: $first, after: $after, useImprovedPagination: true) {{
        edges {{ node {{ number line }} }}
        {_PAGE}
      }}
    }}
  }}
}}
"""

# the same lines of servers that have no such pages
CONSOLE_TAIL = """
query RunConsoleLogTail($entity: String!, $project: String!, $runName: String!, $last: Int!) {
  project(name: $project, entityName: $entity) {
    run(name: $runName) {
      logLineCount
      logLines(last: $last) { edges { node { number line } } }
    }
  }
}
"""

_ARTIFACT = """
fragment ArtifactFragment on Artifact {
  id
  artifactSequence { name project { name entity { name } } }
  versionIndex
  artifactType { name }
  description
  metadata
  ttlDurationSeconds
  ttlIsInherited
  tags { name }
  state
  size
  digest
  fileCount
  createdAt
  aliases { alias artifactCollection { name project { name entity { name } } } }
}
"""
_PRODUCER = "createdBy { __typename ... on Run { name project { name entity { name } } } }"
_BYTES = f"""
  currentManifest {{ file {{ directUrl }} }}
  files(first: 100) {{ {_PAGE} edges {{ node {{ name directUrl }} }} }}
"""

LOGGED = f"""
query RunOutputArtifacts($entity: String!, $project: String!, $name: String!, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{
    run(name: $name) {{
      outputArtifacts(after: $cursor, first: $perPage) {{
        {_PAGE}
        edges {{ node {{ ...ArtifactFragment {_BYTES} }} }}
      }}
    }}
  }}
}}
{_ARTIFACT}
"""

USED = f"""
query RunInputArtifacts($entity: String!, $project: String!, $name: String!, $cursor: String, $perPage: Int) {{
  project(entityName: $entity, name: $project) {{
    run(name: $name) {{
      inputArtifacts(after: $cursor, first: $perPage) {{
        {_PAGE}
        edges {{ node {{ ...ArtifactFragment {_PRODUCER} }} }}
      }}
    }}
  }}
}}
{_ARTIFACT}
"""

ARTIFACT_FILES = f"""
query ArtifactFileURLs($id: ID!, $cursor: String, $perPage: Int) {{
  artifact(id: $id) {{
    files(after: $cursor, first: $perPage) {{
      {_PAGE}
      edges {{ node {{ name directUrl }} }}
    }}
  }}
}}
"""

MANIFEST = """
query FetchArtifactManifest($id: ID!) {
  artifact(id: $id) { currentManifest { file { directUrl } } }
}
"""

ARTIFACT_TYPES = f"""
query ProjectArtifactTypes($entity: String!, $project: String!, $cursor: String, $perPage: Int) {{
  project(name: $project, entityName: $entity) {{
    artifactTypes(after: $cursor, first: $perPage) {{
      edges {{ node {{ name }} }}
      {_PAGE}
    }}
  }}
}}
"""

COLLECTIONS_AND_VERSIONS = f"""
query ArtifactTypeArtifactCollections($entity: String!, $project: String!, $type: String!, $cursor: String,
    $perPage: Int) {{
  project(entityName: $entity, name: $project) {{
    artifactType(name: $type) {{
      artifactCollections(after: $cursor, first: $perPage) {{
        {_PAGE}
        edges {{
          node {{
            __typename
            name
            artifacts(first: 10) {{ {_PAGE} edges {{ node {{ ...ArtifactFragment {_PRODUCER} }} }} }}
          }}
        }}
      }}
    }}
  }}
}}
{_ARTIFACT}
"""

VERSIONS = f"""
query ProjectArtifacts($entity: String!, $project: String!, $type: String!, $collection: String!, $cursor: String,
    $perPage: Int) {{
  project(entityName: $entity, name: $project) {{
    artifactType(name: $type) {{
      artifactCollection(name: $collection) {{
        artifacts(after: $cursor, first: $perPage) {{
          {_PAGE}
          edges {{ node {{ ...ArtifactFragment {_PRODUCER} }} }}
        }}
      }}
    }}
  }}
}}
{_ARTIFACT}
"""

SWEEPS = f"""
query GetSweeps($project: String!, $entity: String!, $cursor: String, $perPage: Int) {{
  project(name: $project, entityName: $entity) {{
    sweeps(after: $cursor, first: $perPage) {{
      {_PAGE}
      edges {{
        node {{
          id name displayName method state description bestLoss config createdAt updatedAt runCount runCountExpected
        }}
      }}
    }}
  }}
}}
"""

REPORTS = f"""
query ProjectViews($project: String!, $entity: String!, $cursor: String, $perPage: Int!, $viewType: String) {{
  project(name: $project, entityName: $entity) {{
    allViews(viewType: $viewType, first: $perPage, after: $cursor) {{
      edges {{
        node {{ id name displayName description user {{ username }} spec updatedAt createdAt }}
        cursor
      }}
      {_PAGE}
    }}
  }}
}}
"""

# of one run: what is asked together
_PARTS = {
    "lines": ("", "historyLineCount eventsLineCount logLineCount"),
    "history": (
        ", $minStep: Int64!, $maxStep: Int64!, $rows: Int!",
        "history(minStep: $minStep, maxStep: $maxStep, samples: $rows)",
    ),
    "events": (", $events: Int!", "events(samples: $events)"),
    "files": (
        ", $fileLimit: Int!",
        f"files(first: $fileLimit) {{ edges {{ node {{ name directUrl sizeBytes md5 }} cursor }} {_PAGE} }}",
    ),
    "logged": (
        ", $logged: Int!",
        f"outputArtifacts(first: $logged) {{ {_PAGE} edges {{ node {{ ...ArtifactFragment {_BYTES} }} }} }}",
    ),
    "used": (
        ", $used: Int!",
        f"inputArtifacts(first: $used) {{ {_PAGE} edges {{ node {{ ...ArtifactFragment {_PRODUCER} }} }} }}",
    ),
}
PARTS = tuple(_PARTS)


def read_run(parts: Iterable[str]) -> str:
    """One look at several parts of a run."""
    return _read_run(tuple(parts))


@cache
def _read_run(parts: tuple[str, ...]) -> str:
    variables = "".join(_PARTS[part][0] for part in parts)
    fields = "\n".join(_PARTS[part][1] for part in parts)
    fragment = _ARTIFACT if "logged" in parts or "used" in parts else ""
    return f"""
query ReadRun($entity: String!, $project: String!, $name: String!{variables}) {{
  project(name: $project, entityName: $entity) {{
    run(name: $name) {{
{fields}
    }}
  }}
}}
{fragment}
"""
