//! Who holds a taken TCP port, as far as `/proc` tells.
//!
//! For error messages only; slow, and blind to processes of other users.

use std::net::SocketAddr;

/// The kernel's code for LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// `name (pid 123)` of a process that listens on the port of `address`; `None` where that cannot be
/// told (another user's process, another network namespace).
pub fn of(address: SocketAddr) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address.port()))
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let holder = std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = std::fs::read_dir(process.path().join("fd"))
            .ok()?
            .flatten()
            .any(|fd| {
                std::fs::read_link(fd.path())
                    .is_ok_and(|link| links.iter().any(|l| link.as_os_str() == l.as_str()))
            });
        holds.then_some((pid, process.path()))
    })?;
    let name = std::fs::read_to_string(holder.1.join("comm")).unwrap_or_default();
    Some(format!("{} (pid {})", name.trim(), holder.0))
}

fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let local = columns.nth(1)?;
            let state = columns.nth(1)?;
            let inode = columns.nth(5)?;
            let held = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            (state == LISTEN && held == port).then(|| inode.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(listener.local_addr().unwrap()).unwrap();
        assert!(
            holder.contains(&format!("(pid {})", std::process::id())),
            "{holder}"
        );
    }

    #[test]
    fn a_free_port_has_no_holder() {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert_eq!(of(address), None);
    }
}
