//! Disks that outlive a pod.

super::provider! {
    /// Disks that outlive a pod. `attach` and `detach` are in the `PodProvider` of the same plugin.
    ///
    /// Promises of every method: as for [`PodProvider`](crate::PodProvider). A volume provider never formats a disk, and
    /// never deletes what it did not create.
    trait VolumeProvider = "volume", proxy RemoteVolumes;
    rpc {
        /// What this provider can do. Constant while the instance lives.
        describe(DescribeVolumeRequest) -> VolumeCapabilities;

        /// Makes a disk of at least the size asked for.
        ///
        /// - The same token twice is one volume; the same token with another shape: `Conflict`.
        create(CreateVolumeRequest) -> Volume;

        /// A volume by its id.
        get(VolumeRef) -> Volume;

        /// Volumes that carry all the given tags, in pages, as in `PodProvider::list`.
        list(ListVolumesRequest) -> ListVolumesResponse;

        /// Makes a disk larger. Large enough already is success; it never shrinks.
        expand(ExpandVolumeRequest) -> Volume;

        /// Takes a snapshot. The same token twice is one snapshot.
        snapshot(SnapshotRequest) -> Snapshot;

        /// Deletes a volume. Gone already is success; attached to a machine: `Conflict`.
        delete(VolumeRef) -> Empty;
    }
    stream {}
    duplex {}
}
