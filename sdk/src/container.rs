//! Messages of the [`ContainerProvider`](crate::ContainerProvider).

pub use crate::v1::attach_input::Input as AttachInputPart;
pub use crate::v1::attach_output::Output as AttachOutputPart;
pub use crate::v1::exec_input::Input as ExecInputPart;
pub use crate::v1::exec_output::Output as ExecOutputPart;
pub use crate::v1::import_chunk::Part as ImportPart;
pub use crate::v1::logs_input::Input as LogsInputPart;
pub use crate::v1::{
    AttachInput, AttachOutput, ContainerCapabilities, ContainerEvent, ContainerEventsRequest,
    ContainerRef, ContainerState, ContainerStats, ContainerStatus, CreateContainerRequest,
    DescribeContainerRequest, Device, DeviceStats, Empty, EnvVar, ExecExit, ExecInput, ExecOutput,
    ExecStart, HugepageStats, Image, ImportChunk, ImportProgress, KillContainerRequest, Layer,
    ListContainersRequest, ListContainersResponse, ListImagesRequest, ListImagesResponse, LogChunk,
    LogStream, LogsInput, LogsStart, MissingRequest, MissingResponse, Mount, Namespaces,
    PidNamespace, Pressure, PressureStats, Process, ProcessUser, PullRequest, PullResponse,
    RemoveImageRequest, Resources, Rlimit, Seccomp, SeccompMode, Security, StatsRequest,
    StatsResponse, StopContainerRequest, TerminalSize, UpdateContainerRequest, UsageRequest,
    UsageResponse, UserNamespace,
};
