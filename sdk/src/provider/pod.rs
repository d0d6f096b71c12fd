//! Machines.

super::provider! {
    /// Machines: VMs, or what stands in for them.
    ///
    /// Promises of every method: it may be called concurrently and again; dropping its future or passing the deadline
    /// cancels it without leaving anything that `list` or `sweep` does not show; an id that the provider does not know
    /// answers [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); what `describe` denies answers
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported); nothing of a request is ignored in silence. Times are
    /// in the unit that the field's name ends with. After a restart of the plugin everything still holds: the provider,
    /// not the plugin's memory, is the truth.
    trait PodProvider = "pod", proxy RemotePods;
    rpc {
        /// What this provider can do. Constant while the instance lives, answered without a call to the outside.
        describe(DescribePodRequest) -> PodCapabilities;

        /// Machine types that fit what a pod asks for, best first, and why.
        ///
        /// - Makes nothing and reserves nothing; the same request gives the same answer.
        /// - Each candidate has at least the CPU, memory and GPUs asked for, and the architecture if one is asked for.
        /// - A machine type or architecture that does not exist, or a wish that nothing fits: `Invalid`.
        /// - Never answers an empty list.
        plan(PlanRequest) -> PlanResponse;

        /// Makes a machine and starts it.
        ///
        /// - The same token twice is one machine: the second call answers the same id, whether the first is under way,
        ///   finished, cancelled or its answer lost. The same token with another shape: `Conflict`.
        /// - Answers as soon as the provider accepted, normally with `MACHINE_STATE_CREATING`; later failures show in
        ///   `get` as `MACHINE_STATE_FAILED` with their kind, and the half-made machine still has to be destroyed.
        /// - After a cancelled or failed call, either nothing exists or `list` finds it by its tags.
        /// - `user_data` over the limit of `describe`, or an unknown image or machine type: `Invalid`.
        /// - A volume of `disks` that is not there: `NotFound`; one that another machine has: `Conflict`. Nothing is made then.
        /// - `user_data` reaches the guest unchanged and is not logged.
        create(CreateRequest) -> Machine;

        /// A machine by its id.
        ///
        /// - `NotFound` once it is gone; some providers answer so for a few seconds after `create`, too.
        get(GetRequest) -> Machine;

        /// Machines that carry all the given tags, in pages.
        ///
        /// - Every machine that `create` made and `destroy` has not removed is on exactly one page, failed and stopped
        ///   ones included; a machine of `create` may take seconds to appear.
        /// - A page has at most `page_size` entries where that is not 0; an unknown page token: `Invalid`.
        list(ListRequest) -> ListResponse;

        /// Boots a stopped machine again, with its disks as they were.
        ///
        /// - Answers once the provider accepted; `get` says when it runs. Running already, or on its way there, is success.
        start(StartMachineRequest) -> Empty;

        /// Powers a machine off: asks the guest, and cuts the power once `grace_ms` passed.
        ///
        /// - Answers once it is off. Off already is success. The machine still exists and can be destroyed.
        stop(StopMachineRequest) -> Empty;

        /// Removes a machine and all that it owns: disks made for it, addresses, interfaces.
        ///
        /// - Works in every state. Gone already, or never there: success.
        /// - After success `get` answers `NotFound`, `list` does not show it, and `sweep` shows nothing of it, at the
        ///   latest once the provider's own listings settled.
        /// - Volumes of a `VolumeProvider` are detached and kept.
        destroy(DestroyRequest) -> Empty;

        /// The machine's addresses, and where the node dials the agent. Empty fields are not known yet.
        addresses(AddressesRequest) -> Addresses;

        /// Attaches a volume, and answers how the guest finds it whatever the order of disks.
        ///
        /// - Attached there already is success with the same answer; attached elsewhere: `Conflict`.
        /// - Where `describe` denies `attach_after_boot`, `Unsupported`: machines have their volumes from `create` on.
        attach(AttachRequest) -> AttachResponse;

        /// Detaches a volume, which is available then. Not attached is success.
        detach(DetachRequest) -> Empty;

        /// Changes a machine's size. The size that it has already is success.
        resize(ResizeRequest) -> Machine;

        /// Writes what a running machine is at one moment into a directory of this node, and lets it go on.
        ///
        /// - The guest stands still meanwhile, as a whole. It runs on when this answers, well or not, and whatever becomes of
        ///   the caller.
        /// - Afterwards `create` with this directory makes a machine of the same type that goes on from that moment; as often
        ///   as one likes, also at once, also while the first machine runs, also after a restart of the plugin.
        /// - The guest's memory is in the files, with all of its secrets: they are the host's alone. Nothing is written elsewhere.
        /// - After a failure, a cancelled call or a deadline the directory is empty again.
        /// - A directory that is not empty, is not there or can be written to by others: `Invalid`; a full disk: `Capacity`; a
        ///   machine that does not run: `Conflict`.
        /// - `create` with a checkpoint that is not there, is damaged, or is of a machine of another type: `Invalid`. One that this provider
        ///   could take then and cannot now (another version, another processor) may show later, as a failed machine.
        checkpoint(CheckpointRequest) -> Empty;

        /// What carries the tags, costs money and is not a machine: disks, interfaces, addresses left behind.
        sweep(SweepRequest) -> SweepResponse;

        /// Limits of the account and what is used of them.
        quota(QuotaRequest) -> QuotaResponse;
    }
    stream {
        /// The machine's console.
        ///
        /// - Replays at most `replay_bytes` of the last bytes; then, with `follow`, goes on until the machine is gone.
        /// - Several readers may follow at once; a slow one loses bytes rather than slowing the machine.
        console(ConsoleRequest) -> ConsoleChunk;

        /// What happens to machines, from now on: gone, preempted soon, maintenance.
        ///
        /// - Never ends by itself. Events may repeat; one may be missed, so that callers also poll.
        events(EventsRequest) -> MachineEvent;
    }
    duplex {}
}
