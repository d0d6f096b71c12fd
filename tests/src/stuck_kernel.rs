//! A kernel that says one line on the first serial port and then hangs for ever.
//!
//! An ELF file with a note that names a 32-bit entry point, as the Xen PVH boot protocol has it: QEMU boots it like Linux.

/// What it says before it hangs.
pub const LAST_WORDS: &str = "stuck-kernel: this is my last line";

/// The file.
pub fn elf() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.push(0xbe); // mov esi, message
    code.extend(((LOAD_ADDRESS + CODE_LENGTH) as u32).to_le_bytes());
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03]); // next: lodsb; test al, al; jz hang
    code.extend([0xee, 0xeb, 0xf8]); // out dx, al; jmp next
    code.extend([0xf4, 0xeb, 0xfd]); // hang: hlt; jmp hang
    assert_eq!(code.len() as u64, CODE_LENGTH);
    code.extend(format!("{LAST_WORDS}\n\0").bytes());

    let mut note = Vec::new();
    for word in [4_u32, 4, PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((LOAD_ADDRESS as u32).to_le_bytes());

    let headers = ELF_HEADER + 2 * PROGRAM_HEADER;
    let mut file = header();
    program_header(&mut file, PT_LOAD, headers + note.len() as u64, code.len() as u64);
    program_header(&mut file, PT_NOTE, headers, note.len() as u64);
    file.extend(note);
    file.extend(code);
    file
}

fn header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    for half in [2_u16, 62] {
        header.extend(half.to_le_bytes()); // an executable for x86-64
    }
    header.extend(1_u32.to_le_bytes());
    for word in [LOAD_ADDRESS, ELF_HEADER, 0] {
        header.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    header.extend(0_u32.to_le_bytes());
    for half in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, size: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    for word in [offset, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4] {
        file.extend(word.to_le_bytes());
    }
}

const LOAD_ADDRESS: u64 = 0x10_0000;
const CODE_LENGTH: u64 = 20;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
