//! The files as a reader finds them that was written from the formats' specifications alone.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress, Status};
use image::is_zero;
use proptest::prelude::*;

use super::*;

const IMAGE: Digest = Digest([0x2a; 32]);
const BLOCK: usize = 4096;

/// Blocks of zeros, of text, and of noise, the last one cut.
fn disk(blocks: &[u8], cut: usize) -> Vec<u8> {
    let mut x = 1u64;
    let mut byte = move |kind, i: usize| match kind {
        0 => 0,
        1 => b"a line of text that comes again and again\n"[i % 42],
        _ => {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        }
    };
    let bytes =
        blocks.iter().flat_map(|kind| (0..BLOCK).map(|i| byte(*kind, i)).collect::<Vec<_>>());
    let mut bytes: Vec<u8> = bytes.collect();
    bytes.truncate(bytes.len().saturating_sub(cut * 512));
    bytes
}

/// The file of a disk. Pieces must not overlap, nor stand back in a stream.
fn file(format: Format, disk: &[u8], chunk: usize, log2: u8) -> Vec<u8> {
    let mut writer = Writer::with_cells(format, disk.len() as u64, log2, &IMAGE, "disk");
    let packer = writer.packer();
    let mut pieces = Vec::new();
    for (i, plain) in disk.chunks(chunk).enumerate().filter(|(_, plain)| !is_zero(plain)) {
        let packed = packer.pack_bytes((i * chunk) as u64, plain.to_vec().into()).unwrap();
        pieces.extend(writer.place(packed).unwrap());
    }
    let end = writer.finish().unwrap();
    pieces.extend(end.pieces);
    let (mut file, mut taken) = (vec![0; end.len as usize], BTreeMap::new());
    for piece in pieces {
        let (at, past) = (piece.at as usize, piece.at as usize + piece.bytes.len());
        let before = taken.range(..past).next_back();
        assert!(before.is_none_or(|(_, end)| *end <= at), "{at}..{past} and {before:?}");
        let last = taken.last_key_value();
        assert!(!format.is_stream() || last.is_none_or(|(start, _)| *start < at));
        taken.insert(at, past);
        file[at..past].copy_from_slice(&piece.bytes);
    }
    file
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Inflates a cluster piece by piece, so that no more than the window is at hand.
fn inflate(deflated: &[u8], len: usize) -> Vec<u8> {
    let mut zlib = Decompress::new_with_window_bits(false, 12);
    let mut plain = Vec::new();
    while plain.len() < len {
        let mut some = vec![0; 700.min(len - plain.len())];
        let (from, before) = (zlib.total_in() as usize, zlib.total_out());
        zlib.decompress(&deflated[from..], &mut some, FlushDecompress::None).unwrap();
        let got = (zlib.total_out() - before) as usize;
        assert!(got > 0);
        plain.extend_from_slice(&some[..got]);
    }
    plain
}

/// The disk in a qcow2 file, in which every count of references is right.
fn read_qcow2(file: &[u8]) -> Vec<u8> {
    assert_eq!((be32(file, 0), be32(file, 4), be64(file, 8)), (0x514649fb, 3, 0));
    let (log2, size) = (be32(file, 20), be64(file, 24));
    let (cluster, zstd) = (1usize << log2, be64(file, 72) == 8);
    assert_eq!((zstd, be32(file, 100), be64(file, 72) & !8), (file[104] == 1, 112, 0));
    let (l1_len, l1) = (be32(file, 36) as usize, be64(file, 40) as usize);
    let (table, table_len) = (be64(file, 48) as usize, be32(file, 56) as usize);
    assert!(file.len().is_multiple_of(cluster));
    let mut counts = vec![0u16; file.len() / cluster];
    let mut refer = |at: usize, len: usize| {
        (at / cluster..(at + len).div_ceil(cluster)).for_each(|c| counts[c] += 1);
    };
    refer(0, cluster);
    refer(l1, l1_len * 8);
    refer(table, table_len * cluster);
    let mut disk = vec![0; (size as usize).next_multiple_of(cluster)];
    for index in (0..l1_len).filter(|i| be64(file, l1 + 8 * i) != 0) {
        let entry = be64(file, l1 + 8 * index);
        assert_eq!(entry >> 63, 1);
        let l2 = (entry & 0x00ff_ffff_ffff_fe00) as usize;
        refer(l2, cluster);
        for slot in 0..cluster / 8 {
            let entry = be64(file, l2 + 8 * slot);
            let at = (index * cluster / 8 + slot) * cluster;
            let plain = match entry >> 62 {
                0 => {
                    assert_eq!(entry, 0);
                    continue;
                }
                1 => {
                    let x = 62 - (log2 - 8);
                    let host = (entry & ((1 << x) - 1)) as usize;
                    let sectors = ((entry & !(1 << 62)) >> x) as usize + 1;
                    let len = sectors * 512 - host % 512;
                    refer(host, len);
                    let packed = &file[host..host + len];
                    match zstd {
                        // What follows the frame in the sector is another cluster's.
                        true => {
                            let mut plain = vec![0; cluster];
                            let mut decoder = zstd::stream::raw::Decoder::new().unwrap();
                            let done = zstd::stream::raw::Operation::run_on_buffers(
                                &mut decoder,
                                packed,
                                &mut plain,
                            );
                            assert_eq!(done.unwrap().bytes_written, cluster);
                            plain
                        }
                        false => inflate(packed, cluster),
                    }
                }
                _ => {
                    let host = (entry & 0x00ff_ffff_ffff_fe00) as usize;
                    refer(host, cluster);
                    file[host..host + cluster].to_vec()
                }
            };
            assert!(!is_zero(&plain));
            disk[at..at + cluster].copy_from_slice(&plain);
        }
    }
    let per_block = cluster / 2;
    let blocks: Vec<usize> =
        (0..table_len * cluster / 8).map(|i| be64(file, table + 8 * i) as usize).collect();
    blocks.iter().filter(|at| **at != 0).for_each(|at| refer(*at, cluster));
    for (i, count) in counts.iter().enumerate() {
        let at = blocks[i / per_block] + i % per_block * 2;
        let said = u16::from_be_bytes(file[at..at + 2].try_into().unwrap());
        assert!(
            said == *count && said > 0,
            "cluster {i}: {said}, and is referred to {count} times"
        );
    }
    assert!(is_zero(&disk[size as usize..]));
    disk.truncate(size as usize);
    disk
}

/// The disk in a vmdk file; by its tables, and by its markers, as who reads it as a stream.
fn read_vmdk(file: &[u8]) -> Vec<u8> {
    assert_eq!((&file[..4], le32(file, 4), le32(file, 8)), (&b"KDMV"[..], 3, 0x30001));
    let (size, grain) = (le64(file, 12) as usize * 512, le64(file, 20) as usize * 512);
    assert_eq!((le64(file, 56), &file[72..79]), (u64::MAX, &b"\0\n \r\n\x01\0"[..]));
    let footer = &file[file.len() - 1024..];
    assert_eq!((&footer[..56], &footer[64..512]), (&file[..56], &file[64..512]));
    assert!(is_zero(&footer[512..]));
    let mut disk = vec![0; size];
    let mut tables: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let (mut at, mut kinds) = (le64(file, 64) as usize * 512, Vec::new());
    while at < file.len() {
        let (value, len) = (le64(file, at) as usize, le32(file, at + 8) as usize);
        if len > 0 {
            let place = value * 512;
            let plain = &mut disk[place..(place + grain).min(size)];
            let mut zlib = Decompress::new(true);
            let deflated = &file[at + 12..at + 12 + len];
            let status = zlib.decompress(deflated, plain, FlushDecompress::Finish).unwrap();
            assert_eq!((status, zlib.total_out() as usize), (Status::StreamEnd, plain.len()));
            let index = place / grain;
            let table = tables.entry(index / 512).or_insert_with(|| vec![0; 512]);
            table[index % 512] = (at / 512) as u32;
            at += (12 + len).next_multiple_of(512);
        } else {
            kinds.push((le32(file, at + 12), at / 512 + 1));
            at += (1 + value) * 512;
        }
    }
    let directory = le64(footer, 56) as usize;
    let [.., (2, there), (3, _), (0, _)] = kinds[..] else { panic!("{kinds:?}") };
    assert_eq!((directory, kinds.len()), (there, tables.len() + 3));
    for index in 0..size.div_ceil(512 * grain) {
        let at = le32(file, directory * 512 + 4 * index) as usize;
        let found = (at != 0).then(|| (0..512).map(|i| le32(file, at * 512 + 4 * i)).collect());
        assert_eq!(found.as_ref(), tables.get(&index));
        assert!(at == 0 || kinds.contains(&(1, at)));
    }
    disk
}

fn read(format: Format, file: &[u8]) -> Vec<u8> {
    match format {
        Format::Raw => file.to_vec(),
        Format::Qcow2(_) => read_qcow2(file),
        Format::Vmdk => read_vmdk(file),
    }
}

const ALL: [Format; 5] = [
    Format::Raw,
    Format::Qcow2(None),
    Format::Qcow2(Some(Codec::Zlib)),
    Format::Qcow2(Some(Codec::Zstd)),
    Format::Vmdk,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_format_holds_the_disk(
        blocks in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2)], 0..160),
        cut in 0usize..8, chunk in 14u8..=18, runs in 1usize..20,
    ) {
        // Long runs too.
        let blocks: Vec<u8> = blocks.chunks(runs).flat_map(|c| vec![c[0]; c.len()]).collect();
        let disk = disk(&blocks, cut);
        for format in ALL {
            prop_assert!(read(format, &file(format, &disk, 1 << chunk, chunk.min(16))) == disk);
        }
    }

    /// Cells of one sector: many tables and blocks of counts in a small file.
    #[test]
    fn tables_and_counts_are_written_as_they_complete(
        blocks in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2)], 0..200),
        cut in 0usize..8,
    ) {
        let disk = disk(&blocks, cut);
        for format in ALL {
            prop_assert!(read(format, &file(format, &disk, 16 << 10, 9)) == disk, "{format:?}");
        }
    }
}

#[test]
fn zeros_take_no_room_and_what_compresses_takes_less() {
    let size = |format, disk: &[u8]| file(format, disk, 256 << 10, 16).len();
    let zeros = vec![0; 4 << 20];
    let text = disk(&[1; 1024], 0);
    for format in ALL.into_iter().filter(|f| *f != Format::Raw) {
        assert!(size(format, &zeros) <= 5 << 16, "{format:?}");
        let (found, limit) =
            (size(format, &text), if format.is_plain() { 5 << 20 } else { 1 << 20 });
        assert!(found < limit, "{format:?}: {found}");
    }
}

/// Readers of these files are other programs: what changes here must be held against them.
#[test]
fn golden_headers() {
    let disk = disk(&[1, 0, 2], 1);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let qcow2 = file(Format::Qcow2(Some(Codec::Zstd)), &disk, 256 << 10, 16);
    assert_eq!(
        hex(&qcow2[..120]),
        "514649fb00000003000000000000000000000000000000100000000000002e00\
         00000000000000010000000000030000000000000005000000000001"
            .to_owned()
            + &hex(&[0; 12])
            + &hex(&8u64.to_be_bytes())
            + &hex(&[0; 16])
            + "0000000400000070"
            + "0100000000000000"
            + &hex(&[0; 8])
    );
    let vmdk = file(Format::Vmdk, &disk, 256 << 10, 16);
    assert_eq!(
        hex(&vmdk[..79]),
        "4b444d5603000000010003001700000000000000800000000000000001000000000000001400000000000000\
         000200000000000000000000ffffffffffffffff8000000000000000000a200d0a0100"
    );
    let text = vmdk[512..].split(|b| *b == 0).next().unwrap();
    assert_eq!(
        std::str::from_utf8(text).unwrap(),
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=2a2a2a2a\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\n# Extent description\nRW 23 SPARSE \"disk\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"1\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n"
    );
}

#[test]
fn a_name_cannot_write_into_the_descriptor() {
    let name = "x\"\nparentFileNameHint=\"/etc/shadow";
    let mut writer =
        Writer::new(Format::Vmdk, &Geometry::new(512, 512, 18).unwrap(), &Digest([0xff; 32]), name);
    let packed = writer.packer().pack_bytes(0, vec![1; 512].into()).unwrap();
    let begin = writer.place(packed).unwrap().remove(0).bytes;
    let text = String::from_utf8_lossy(&begin[512..]);
    assert!(text.contains("RW 1 SPARSE \"x__parentFileNameHint=_/etc/shadow\"\n"), "{text}");
    assert!(text.contains("CID=7fffffff\n"));
}
