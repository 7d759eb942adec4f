//! Which page size a mapping really got: asking for huge pages is only a hint.

use super::map::HUGE_PAGE;

/// What is reported if nothing better is known.
const SMALL_PAGE: u64 = 4096;

/// The size of most of the present pages of the mapping that contains `address`.
pub(super) fn of_mapping(address: usize) -> u64 {
    match std::fs::read_to_string("/proc/self/smaps") {
        Ok(smaps) => in_smaps(&smaps, address),
        Err(_) => SMALL_PAGE,
    }
}

/// The address range of a mapping's headline, which begins `7f12a000-7f13b000 rw-s`.
fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

fn in_smaps(smaps: &str, address: usize) -> u64 {
    let lines = smaps
        .lines()
        .skip_while(|line| !range(line).is_some_and(|(start, end)| (start..end).contains(&address)))
        .skip(1)
        .take_while(|line| range(line).is_none());
    let (mut present, mut huge, mut kernel_page) = (0_u64, 0_u64, SMALL_PAGE);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let kib = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        match name {
            "Rss" => present = kib,
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => huge += kib,
            "KernelPageSize" => kernel_page = kib * 1024,
            _ => {}
        }
    }
    if huge > 0 && huge * 2 >= present {
        HUGE_PAGE as u64
    } else {
        kernel_page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
KernelPageSize:        4 kB
Rss:                4096 kB
AnonHugePages:      4096 kB
ShmemPmdMapped:        0 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000400000-7f0000800000 rw-s 00000000 00:1b 7                          /dev/shm/a b
Size:               4096 kB
KernelPageSize:        4 kB
Rss:                4096 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     1024 kB
7f0000800000-7f0040800000 rw-s 00000000 00:0f 9                          /dev/hugepages/x
KernelPageSize:  1048576 kB
Rss:                   0 kB
";

    #[test]
    fn the_mapping_of_the_address_decides() {
        assert_eq!(in_smaps(SMAPS, 0x7f00_0030_0000), 2 << 20);
        assert_eq!(in_smaps(SMAPS, 0x7f00_0040_0000), 4096);
        assert_eq!(in_smaps(SMAPS, 0x7f00_0080_0000), 1 << 30);
        assert_eq!(in_smaps(SMAPS, 0x1000), 4096);
    }
}
