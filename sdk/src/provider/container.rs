//! Containers in a machine.

super::provider! {
    /// Containers in one machine, the one that this provider runs in.
    ///
    /// Promises of every method: it may be called concurrently and again; dropping its future or passing the deadline cancels it
    /// and leaves nothing half-made behind that a repetition would trip over; an id that the provider does not know answers
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); what `describe` denies answers
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported); nothing of a request is ignored in silence. Values of
    /// environment variables and credentials are not logged.
    trait ContainerProvider = "container", proxy RemoteContainers;
    rpc {
        /// What this provider can do. Constant while the instance lives.
        describe(DescribeContainerRequest) -> ContainerCapabilities;

        /// Which layers of an image this machine lacks; the digests as they travel, each once, in the image's order.
        ///
        /// - Nothing missing means that `create` with this image works without any import.
        missing(MissingRequest) -> MissingResponse;

        /// Pulls an image, where the provider does that by itself. Pulled already is success with the same id.
        pull(PullRequest) -> PullResponse;

        /// Ids of the images that are here in whole.
        list_images(ListImagesRequest) -> ListImagesResponse;

        /// Removes an image and the layers that no other image needs. Not there is success; used by a container:
        /// `Conflict`.
        remove_image(RemoveImageRequest) -> Empty;

        /// How much room images take, and how much is left.
        usage(UsageRequest) -> UsageResponse;

        /// Makes a container; its program does not run yet.
        ///
        /// - The same id with the same request is success; with another request: `Conflict`.
        /// - An image that is not here in whole: `NotFound`. A field that cannot be honoured: `Invalid` or
        ///   `Unsupported`, never ignored.
        /// - After a failure nothing of the container is left.
        create(CreateContainerRequest) -> Empty;

        /// Runs the container's program.
        ///
        /// - Started already is success, exited already too: a container runs at most once.
        /// - A program that cannot be executed: `Invalid`, and the container is exited with code 127 (not found) or 126
        ///   (not executable) and reason "StartError".
        start(ContainerRef) -> Empty;

        /// Sends the stop signal, and kills everything in the container once `grace_ms` passed.
        ///
        /// - Answers once it exited. Exited already is success.
        stop(StopContainerRequest) -> Empty;

        /// Sends a signal to the container's first process. Exited already is success; a name that is no signal:
        /// `Invalid`.
        kill(KillContainerRequest) -> Empty;

        /// Removes a container and its writable layer, killing it if it runs. Not there is success.
        remove(ContainerRef) -> Empty;

        /// Changes the limits of a container that is created or runs; fields at their default keep what is.
        ///
        /// - All of them or none: after an error the old ones hold.
        /// - Less memory than is used and can be taken back, and a container that exited: `Conflict`.
        update(UpdateContainerRequest) -> Empty;

        /// Lets all of a container stand still: what it runs now, and what is run in it meanwhile. It stays running as its state says.
        ///
        /// - Answers once nothing of it runs any more. Standing still already is success; a container that does not run:
        ///   `Conflict`. One that stands still can be stopped at once, killed and removed.
        pause(ContainerRef) -> Empty;

        /// Lets a container go on. One that does already is success; one that does not run: `Conflict`.
        ///
        /// - `events` tells its state again, whether or not it changed.
        resume(ContainerRef) -> Empty;

        /// How a container is. A container that exited keeps its exit code, times and reason until it is removed.
        status(ContainerRef) -> ContainerStatus;

        /// All containers, exited ones included.
        list(ListContainersRequest) -> ListContainersResponse;

        /// Counters of one container, or of all that run.
        stats(StatsRequest) -> StatsResponse;
    }
    stream {
        /// How containers change, from now on. It starts with the state of every container that exists, so that a
        /// reader that connects again misses nothing; it never ends by itself.
        events(ContainerEventsRequest) -> ContainerEvent;
    }
    duplex {
        /// Takes layers in.
        ///
        /// - Input: a layer, its bytes in pieces, the next layer. Output: progress, one with `done` for each layer.
        /// - Digest, size and diff_id are checked: a mismatch is `Invalid`, and nothing of that layer is kept.
        /// - A layer that is here already is read and answered as done. Two imports of one layer at once are one layer.
        /// - Cut off in the middle, nothing half-made counts as present.
        import(ImportChunk) -> ImportProgress;

        /// Runs a program in a running container.
        ///
        /// - The first input is `start`, and only the first. Output ends with exactly one `exit`, after all output.
        /// - A container that does not run: `Conflict`. A program that cannot be executed exits with 127 or 126.
        /// - With `timeout_ms`, the process and all that it started are killed, and `exit` says `timed_out`.
        /// - Dropping the output kills the process.
        exec(ExecInput) -> ExecOutput;

        /// The container's own streams, from now on; ends when its output ends.
        attach(AttachInput) -> AttachOutput;

        /// The container's output with sequence numbers.
        ///
        /// - Sends each chunk with a number greater than `after`, in order, without gaps or duplicates, and follows until
        ///   the output ended and all of it was sent. Chunks are kept until acknowledged or removed with the container.
        /// - While too much is unacknowledged, the container's writes wait; nothing is dropped.
        logs(LogsInput) -> LogChunk;
    }
}
