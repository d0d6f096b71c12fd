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

        /// Makes a disk of at least the size asked for, rounded up to the granularity that `describe` says.
        ///
        /// - The same token twice is one volume, whether the first call is under way, finished, cancelled or its answer lost;
        ///   the same token with another shape: `Conflict`.
        /// - Answers as soon as the provider accepted; `get` says when it is `VOLUME_STATE_AVAILABLE`.
        /// - An unknown type, zone or snapshot, or a size that no disk has: `Invalid`, and nothing is made.
        /// - After a cancelled or failed call, either nothing exists or `list` finds it by its tags.
        create(CreateVolumeRequest) -> Volume;

        /// A volume by its id; `NotFound` once it is gone.
        get(VolumeRef) -> Volume;

        /// Volumes that carry all the given tags, in pages: each is on exactly one. A page has at most `page_size` entries
        /// where that is not 0; an unknown page token: `Invalid`.
        list(ListVolumesRequest) -> ListVolumesResponse;

        /// Makes a disk larger, and answers its new size. Large enough already is success; it never shrinks.
        expand(ExpandVolumeRequest) -> Volume;

        /// Takes a snapshot, from which `create` can start another volume. The same token twice is one snapshot.
        snapshot(SnapshotRequest) -> Snapshot;

        /// Deletes a volume and what is on it. Gone already is success; attached to a machine: `Conflict`. Snapshots of it stay.
        delete(VolumeRef) -> Empty;
    }
    stream {}
    duplex {}
}
