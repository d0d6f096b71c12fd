//! What a machine that was made of a checkpoint has to renew before it speaks to anybody, and the one of which it was made before it goes
//! on: its clock, which stands where it stood, and its random numbers, of which others may have the same.

use std::fs;
use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

use crate::boot;

/// Makes ready what [`renew`] needs, before there is a checkpoint: without it, all machines of the checkpoint would draw the same
/// random numbers. Blocks for a moment.
pub(crate) fn prepare() -> io::Result<()> {
    if !processor::has_random_numbers() {
        // Loaded here and not at boot, where most machines would load it for nothing. One that is not there may be built in.
        if let Err(error) = boot::load_wanted(DEVICE_MODULE) {
            tracing::warn!(%error, "the module for random numbers is not loaded");
        }
    }
    fresh().map(drop)
}

/// Sets the clock by the machine's own hardware, and mixes what its processor or the node gives into the random numbers. Blocks for
/// a moment. Fails if the random numbers are not renewed; a clock that cannot be set is left as it is.
pub(crate) fn renew() -> io::Result<()> {
    match set_clock() {
        Ok(None) => (),
        Ok(Some(behind)) => tracing::info!(?behind, "the clock is set"),
        Err(error) => tracing::warn!(%error, "the clock is not set"),
    }
    stir()
}

/// The clock of the hardware goes on while the machine does not.
fn set_clock() -> io::Result<Option<Duration>> {
    let text = fs::read_to_string(HARDWARE_CLOCK)?;
    let seconds: u64 = text.trim().parse().map_err(io::Error::other)?;
    let hardware = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let Ok(behind) = hardware.duration_since(SystemTime::now()) else { return Ok(None) };
    if behind < WORTH_IT {
        return Ok(None);
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds as i64, 0))?;
    Ok(Some(behind))
}

/// What is written is mixed in, and counts from the next reseeding on, which is asked for at once.
fn stir() -> io::Result<()> {
    let mut random = fs::OpenOptions::new().write(true).open(RANDOM)?;
    let mixed = fresh().and_then(|fresh| random.write_all(&fresh));
    // In any case: there is what the kernel finds by itself.
    reseed(&random)?;
    mixed
}

/// What no other machine of the checkpoint draws, and nobody knows who has the checkpoint.
fn fresh() -> io::Result<[u8; FRESH_BYTES]> {
    let mut fresh = [0; FRESH_BYTES];
    if processor::has_random_numbers() {
        processor::fill(&mut fresh)?;
    } else {
        fs::File::open(DEVICE)?.read_exact(&mut fresh)?;
    }
    Ok(fresh)
}

/// Random numbers by instruction: in a machine under KVM the node's processor makes them, in an emulated one QEMU takes them from
/// the node's kernel.
#[cfg(target_arch = "x86_64")]
mod processor {
    use std::io;

    pub(super) fn has_random_numbers() -> bool {
        std::arch::is_x86_feature_detected!("rdrand")
    }

    pub(super) fn fill(bytes: &mut [u8]) -> io::Result<()> {
        for piece in bytes.chunks_mut(size_of::<u64>()) {
            let number = (0..TRIES).find_map(|_| number());
            let number =
                number.ok_or_else(|| io::Error::other("the processor gives no random numbers"))?;
            piece.copy_from_slice(&number.to_ne_bytes()[..piece.len()]);
        }
        // Known of processors that slept: all bits set, from then on.
        if bytes.iter().all(|byte| *byte == 0xff) {
            return Err(io::Error::other("the processor's random numbers are none"));
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "no library without a fallback to the kernel's own numbers")]
    fn number() -> Option<u64> {
        #[target_feature(enable = "rdrand")]
        fn number() -> Option<u64> {
            let mut number = 0;
            (std::arch::x86_64::_rdrand64_step(&mut number) == 1).then_some(number)
        }
        // SAFETY: the processor has the instruction.
        has_random_numbers().then(|| unsafe { number() }).flatten()
    }

    /// As many as Intel's guide for software says.
    const TRIES: usize = 10;
}

#[cfg(not(target_arch = "x86_64"))]
mod processor {
    use std::io;

    pub(super) fn has_random_numbers() -> bool {
        false
    }

    pub(super) fn fill(_bytes: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Asks the kernel to draw from what was mixed in.
#[expect(unsafe_code, reason = "there is no safe way to ask for this")]
fn reseed(random: &fs::File) -> io::Result<()> {
    // SAFETY: the request takes no argument, as linux/random.h has it.
    let request = unsafe { NoArg::<RESEED>::new() };
    // SAFETY: it neither reads nor writes memory of ours.
    unsafe { ioctl(random, request) }?;
    Ok(())
}

/// The kernel asks its hardware ahead, so the first bytes may be from before the checkpoint: its driver keeps 64 of them, and what is
/// above that as many.
const FRESH_BYTES: usize = 512;
/// RNDRESEEDCRNG.
const RESEED: Opcode = opcode::none(b'R', 7);
const HARDWARE_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";
/// Of a machine whose processor has no random numbers.
const DEVICE: &str = "/dev/hwrng";
const DEVICE_MODULE: &str = "virtio_rng";
const RANDOM: &str = "/dev/urandom";
/// A guest that stood still for a checkpoint is behind by what that took.
const WORTH_IT: Duration = Duration::from_secs(2);
