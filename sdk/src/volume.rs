//! Messages of the [`VolumeProvider`](crate::VolumeProvider).

pub use crate::v1::{
    CreateVolumeRequest, DescribeVolumeRequest, Empty, ExpandVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, Snapshot, SnapshotRequest, Volume, VolumeCapabilities, VolumeRef,
    VolumeState,
};
