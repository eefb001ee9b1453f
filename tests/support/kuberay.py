"""The fields of KubeRay's published definitions (ray.io/v1), and of the parts of a pod that our manifests use."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resources(Strict):
    limits: dict[str, Quantity] = {}
    requests: dict[str, Quantity] = {}


class NamedReference(Strict):
    name: str
    optional: bool = False


class EnvironmentFrom(Strict):
    secretRef: NamedReference | None = None
    configMapRef: NamedReference | None = None
    prefix: str | None = None


class Port(Strict):
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    name: str | None = None


class Mount(Strict):
    name: str
    mountPath: str
    readOnly: bool | None = None


class Container(Strict):
    name: str
    image: str
    command: list[str] | None = None
    args: list[str] | None = None
    ports: list[Port] = []
    envFrom: list[EnvironmentFrom] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class EmptyDirectory(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: str
    emptyDir: EmptyDirectory


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    value: str | None = None


class Pod(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    nodeSelector: dict[str, str] = {}
    serviceAccountName: str | None = None


class PodTemplate(Strict):
    metadata: dict[str, Any] = {}
    spec: Pod


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    image: str | None = None
    resources: Resources | None = None
    version: Literal["v1", "v2"] | None = None


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: PodTemplate
    serviceType: str | None = None
    enableIngress: bool | None = None


class WorkerGroup(Strict):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: PodTemplate
    idleTimeoutSeconds: int | None = None
    numOfHosts: int | None = None
    suspend: bool | None = None


class RayClusterSpec(Strict):
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    suspend: bool | None = None


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec

    def cluster(self) -> RayClusterSpec:
        return self.spec


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: Annotated[int, Field(ge=0)] = 0
    activeDeadlineSeconds: int | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = 0
    runtimeEnvYAML: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    rayClusterSpec: RayClusterSpec
    suspend: bool | None = None


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec

    def cluster(self) -> RayClusterSpec:
        return self.spec.rayClusterSpec
