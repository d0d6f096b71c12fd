//! An allocator that ends the process when it is given memory of another, for either side of the boundary.

use std::alloc::{GlobalAlloc, Layout, System};

/// Marks every block in front of it. Two with different tags do not take each other's blocks.
pub(crate) struct Tagging<const TAG: u64>;

/// Room in front of a block that keeps its alignment.
fn room(layout: Layout) -> (Layout, usize) {
    let align = layout.align().max(TAG_BYTES);
    let size = layout.size().saturating_add(align);
    (Layout::from_size_align(size, align).unwrap_or(layout), align)
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: blocks are the system's, larger by a multiple of their alignment, and are handed out behind that room.
unsafe impl<const TAG: u64> GlobalAlloc for Tagging<TAG> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (larger, offset) = room(layout);
        // SAFETY: the size is not zero, because of the room.
        unsafe {
            let block = System.alloc(larger);
            if block.is_null() {
                return block;
            }
            block.add(offset - TAG_BYTES).cast::<u64>().write(TAG);
            block.add(offset)
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let (larger, offset) = room(layout);
        // SAFETY: what this allocator gave has a tag in front; what another gave has at least its bookkeeping there.
        unsafe {
            let tag = memory.sub(TAG_BYTES).cast::<u64>();
            if tag.read_unaligned() != TAG {
                std::process::abort();
            }
            tag.write(0);
            System.dealloc(memory.sub(offset), larger);
        }
    }
}

const TAG_BYTES: usize = 8;
