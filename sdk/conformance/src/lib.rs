//! The suite that proves an infranetes provider keeps its promises.
//!
//! An author calls it from a test:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use infranetes_sdk::PodProvider;
//! # async fn the_provider_keeps_its_promises(provider: Arc<dyn PodProvider>) {
//! use infranetes_conformance::{PodSubject, PodSuite};
//!
//! let report = PodSuite::new(provider, PodSubject::default()).run().await;
//! println!("{report}");
//! report.assert_ok();
//! # }
//! ```
//!
//! It works through the trait alone, so that it tests linked, loaded and remote providers alike. It makes real machines
//! and containers, marks them with a tag of this run, and removes what it made, also after failures.
//!
//! Where the cloud behind a provider can be made to fail, as a simulator can, [`PodSuite::with_faults`] and
//! [`VolumeSuite::with_faults`] also check what becomes of calls that were refused, throttled or lost. Where one plugin has machines
//! and volumes, [`PodSuite::with_volumes`] also attaches these to those.
//!
//! Each line of the [`Report`] is one promise of the traits' documentation: kept, broken (with what was seen) or skipped
//! (with why: mostly that `describe` denies the capability).

mod check;
mod container;
mod cut;
mod pod;
mod report;
mod run;
mod stock;
mod volume;

pub use check::Limits;
pub use container::{ContainerSubject, ContainerSuite, LayoutError};
pub use pod::{PodSubject, PodSuite};
pub use report::{Line, Report, Verdict};
pub use stock::fault::{Fault, FaultInjector, FaultyCall};
pub use volume::{VolumeSubject, VolumeSuite};
