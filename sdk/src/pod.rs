//! Messages of the [`PodProvider`](crate::PodProvider).

pub use crate::v1::{
    AddressMode, Addresses, AddressesRequest, AttachRequest, AttachResponse, CheckpointRequest,
    ConsoleChunk, ConsoleRequest, CreateRequest, DescribePodRequest, DestroyRequest, DetachRequest,
    Disk, Empty, EventsRequest, GetRequest, Leftover, ListRequest, ListResponse, Machine,
    MachineEvent, MachineEventKind, MachineState, MachineType, Network, PlanRequest, PlanResponse,
    PodCapabilities, Quota, QuotaRequest, QuotaResponse, ResizeRequest, StartMachineRequest,
    Status, StopMachineRequest, SweepRequest, SweepResponse,
};
