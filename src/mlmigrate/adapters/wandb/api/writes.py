"""The GraphQL that writing sends: the operations of W&B's SDK, and its looks at several runs in one request."""

from __future__ import annotations

from functools import cache

# the SDK's run.update() names the run by its storage id, which leaves its state as it is
STAMP_RUN = """
mutation UpsertBucket($id: String!, $config: JSONString!) {
  upsertBucket(input: {id: $id, config: $config}) { bucket { id name config } }
}
"""

PLACE_RUN = """
mutation UpsertBucket($id: String!, $config: JSONString!, $group: String) {
  upsertBucket(input: {id: $id, config: $config, groupName: $group}) { bucket { id name } }
}
"""

_UPSERT = """
mutation UpsertBucket($name: String!, $project: String!, $entity: String!, $groupName: String, $displayName: String,
    $notes: String, $commit: String, $config: JSONString, $host: String, $program: String, $repo: String,
    $jobType: String, $state: String, $sweep: String, $tags: [String!]%s) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, groupName: $groupName,
      displayName: $displayName, notes: $notes, commit: $commit, config: $config, host: $host, jobProgram: $program,
      jobRepo: $repo, jobType: $jobType, state: $state, sweep: $sweep, tags: $tags}) {
    bucket { id name historyLineCount }
    inserted
  }%s
}
"""
UPSERT_RUN = _UPSERT % ("", "")
# both in one request: mutations are done one after another
UPSERT_RUN_WITH_FILES = _UPSERT % (
    ", $files: [String!]!",
    """
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $name, files: $files}) {
    runID
    uploadHeaders
    files { name uploadUrl }
  }""",
)

LINE_COUNTS = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { id historyLineCount eventsLineCount }
  }
}
"""

# of each at most one: whether there are any, where the server does not say how many
FIRST_LINES = """
query RunFullHistory($project: String!, $entity: String!, $name: String!) {
  project(name: $project, entityName: $entity) {
    run(name: $name) { history(samples: 1) events(samples: 1) }
  }
}
"""

DELETE_RUN = """
mutation DeleteRun($id: ID!) {
  deleteRun(input: {id: $id}) { clientMutationId }
}
"""

CREATE_RUN_FILES = """
mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
    runID
    uploadHeaders
    files { name uploadUrl }
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

RUN_FILES = """
query RunFiles($project: String!, $entity: String!, $name: String!, $fileNames: [String] = [], $fileLimit: Int = 50) {
  project(name: $project, entityName: $entity) {
    run(name: $name) { files(names: $fileNames, first: $fileLimit) { edges { node { name md5 sizeBytes } } } }
  }
}
"""

_ARTIFACTS = """
query %(operation)s($entity: String!, $project: String!, $run: String!, $cursor: String, $perPage: Int) {
  project(name: $project, entityName: $entity) {
    run(name: $run) {
      artifacts: %(field)s(after: $cursor, first: $perPage) {
        edges { node { id state digest versionIndex artifactSequence { name } aliases { alias } } }
        pageInfo { endCursor hasNextPage }
      }
    }
  }
}
"""
OUTPUT_ARTIFACTS = _ARTIFACTS % {"operation": "RunOutputArtifacts", "field": "outputArtifacts"}
INPUT_ARTIFACTS = _ARTIFACTS % {"operation": "RunInputArtifacts", "field": "inputArtifacts"}

LIST_RUNS = """
query Runs($project: String!, $entity: String!, $cursor: String, $perPage: Int = 50, $order: String,
    $filters: JSONString) {
  project(name: $project, entityName: $entity) {
    runs(filters: $filters, after: $cursor, first: $perPage, order: $order) {
      edges { node { id name state group config historyLineCount } cursor }
      pageInfo { endCursor hasNextPage }
    }
  }
}
"""

LIST_PROJECTS = """
query GetProjects($entity: String, $cursor: String, $perPage: Int = 50) {
  models(entityName: $entity, after: $cursor, first: $perPage) {
    pageInfo { endCursor hasNextPage }
    edges { node { id name } }
  }
}
"""

ENTITY = """
query GetTeamEntity($name: String) {
  entity(name: $name) { id name }
}
"""

CREATE_ARTIFACT = """
mutation CreateArtifact($input: CreateArtifactInput!) {
  createArtifact(input: $input) {
    artifact { id state artifactSequence { latestArtifact { id } } }
  }
}
"""

CREATE_ARTIFACT_MANIFEST = """
mutation CreateArtifactManifest($artifactID: ID!, $baseArtifactID: ID, $name: String!, $digest: String!,
    $entityName: String!, $projectName: String!, $runName: String!, $manifestType: ArtifactManifestType!,
    $includeUpload: Boolean!) {
  createArtifactManifest(input: {artifactID: $artifactID, baseArtifactID: $baseArtifactID, name: $name,
      digest: $digest, entityName: $entityName, projectName: $projectName, runName: $runName, type: $manifestType}) {
    artifactManifest {
      id
      file { id uploadUrl @include(if: $includeUpload) uploadHeaders @include(if: $includeUpload) }
    }
  }
}
"""

CREATE_ARTIFACT_FILES = """
mutation CreateArtifactFiles($input: CreateArtifactFilesInput!) {
  createArtifactFiles(input: $input) {
    files {
      edges {
        node {
          storagePath
          uploadUrl
          uploadHeaders
          uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } }
          artifact { id }
        }
      }
    }
  }
}
"""

COMPLETE_MULTIPART = """
mutation CompleteMultipartUploadArtifact($completeMultipartAction: CompleteMultipartAction!,
    $completedParts: [UploadPartsInput!]!, $artifactID: ID!, $storagePath: String!, $uploadID: String!) {
  completeMultipartUploadArtifact(input: {completeMultipartAction: $completeMultipartAction,
      completedParts: $completedParts, artifactID: $artifactID, storagePath: $storagePath, uploadID: $uploadID}) {
    digest
  }
}
"""

COMMIT_ARTIFACT = """
mutation CommitArtifact($artifactID: ID!) {
  commitArtifact(input: {artifactID: $artifactID}) { artifact { id digest } }
}
"""

ARTIFACT_STATE = """
query ArtifactByID($id: ID!) {
  artifact(id: $id) { id state digest aliases { alias artifactCollection { name project { name } } } }
}
"""

USE_ARTIFACT = """
mutation UseArtifact($input: UseArtifactInput!) {
  useArtifact(input: $input) { artifact { id } }
}
"""

ADD_ALIASES = """
mutation AddAliases($input: AddAliasesInput!) {
  result: addAliases(input: $input) { success }
}
"""

LINK_ARTIFACT = """
mutation LinkArtifact($artifactPortfolioName: String!, $entityName: String!, $projectName: String!,
    $aliases: [ArtifactAliasInput!], $clientId: ID, $artifactId: ID) {
  linkArtifact(input: {artifactPortfolioName: $artifactPortfolioName, entityName: $entityName,
      projectName: $projectName, aliases: $aliases, artifactID: $artifactId, clientID: $clientId}) {
    versionIndex
  }
}
"""

VERSIONS = """
query ProjectArtifacts($entity: String!, $project: String!, $type: String!, $collection: String!, $cursor: String,
    $perPage: Int = 50) {
  project(entityName: $entity, name: $project) {
    artifactType(name: $type) {
      artifactCollection(name: $collection) {
        artifacts(after: $cursor, first: $perPage) {
          pageInfo { endCursor hasNextPage }
          edges { version node { id state digest versionIndex } }
        }
      }
    }
  }
}
"""

_WRITTEN = """
fragment Written on Run {
  id
  name
  displayName
  state
  tags
  notes
  group
  jobType
  config
  summaryMetrics
  historyLineCount
  eventsLineCount
}
"""
_OF_FILES = "files(names: $f{n}, first: $l{n}) {{ edges {{ node {{ name md5 sizeBytes }} }} }}"


@cache
def look_at(runs: int) -> str:
    """A look at so many runs of a project in one request: variables r0, r1, .. (names), a0.. and b0.. (steps from, to),
    s0.. (samples of history), e0.. (of events), f0.. (names of files), l0.. (how many).
    """
    each = range(runs)
    given = "".join(
        f", $r{n}: String!, $a{n}: Int64!, $b{n}: Int64!, $s{n}: Int!, $e{n}: Int!, $f{n}: [String], $l{n}: Int"
        for n in each
    )
    asked = "\n".join(
        f"    r{n}: run(name: $r{n}) {{ ...Written history(minStep: $a{n}, maxStep: $b{n}, samples: $s{n})"
        f" events(samples: $e{n}) {_OF_FILES.format(n=n)} }}"
        for n in each
    )
    return (
        f"query RunsWritten($entity: String!, $project: String!{given}) {{\n"
        f"  project(name: $project, entityName: $entity) {{\n{asked}\n  }}\n}}\n{_WRITTEN}"
    )


@cache
def stamp_all(runs: int) -> str:
    """Stamps for so many runs in one request: variables i0, i1, .. (storage ids) and c0.. (configs)."""
    each = range(runs)
    given = ", ".join(f"$i{n}: String!, $c{n}: JSONString!" for n in each)
    asked = "\n".join(
        f"  u{n}: upsertBucket(input: {{id: $i{n}, config: $c{n}}}) {{ bucket {{ id name config }} }}" for n in each
    )
    return f"mutation UpsertBuckets({given}) {{\n{asked}\n}}\n"
