//! Free ports that stay free while a process is down.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::Range;

/// Where ports are looked for when the system does not say which ones it gives to outgoing connections: below the range
/// that IANA has set aside for those, and above what usual services use.
const SERVER_PORTS: Range<u16> = 10_000..32_768;
/// Says from which range the system takes the port of an outgoing connection.
const EPHEMERAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports of an address on which nobody listens now, and which the system gives to no outgoing connection: a process
/// that is killed finds its port free when it starts again.
///
/// `promised` are left out: ports on which a process that has not started yet will listen.
///
/// # Errors
/// When there are too few, or the address is not this machine's.
pub fn free_ports(address: IpAddr, count: usize, promised: &[u16]) -> io::Result<Vec<SocketAddr>> {
    let candidates = candidates(std::fs::read_to_string(EPHEMERAL_PORTS).ok().as_deref());
    // Clusters that are made at once begin at different places.
    let begin = usize::try_from(RandomState::new().hash_one(count) % candidates.len() as u64).unwrap_or(0);
    let (before, after) = candidates.split_at(begin);
    let mut bound = Vec::new();
    for port in after.iter().chain(before) {
        if bound.len() == count {
            break;
        }
        if promised.contains(port) {
            continue;
        }
        match TcpListener::bind((address, *port)) {
            Ok(listener) => bound.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    if bound.len() < count {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("{count} ports of {address} are needed, {} are free", bound.len()),
        ));
    }
    bound.iter().map(TcpListener::local_addr).collect()
}

/// The server ports that are not in the system's range, which is two numbers; never empty.
fn candidates(ephemeral: Option<&str>) -> Vec<u16> {
    let mut bounds = ephemeral
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    let ephemeral = bounds.next().unwrap_or(u16::MAX)..=bounds.next().unwrap_or(u16::MAX);
    let outside: Vec<_> = SERVER_PORTS.filter(|port| !ephemeral.contains(port)).collect();
    if outside.is_empty() {
        return SERVER_PORTS.collect();
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_not_those_of_outgoing_connections() {
        let ports = free_ports(IpAddr::from([127, 0, 0, 1]), 20, &[]).unwrap();
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 20);
        // Tests beside this one look for ports too: one may be taken for a moment.
        let held: Vec<_> = ports.iter().filter_map(|port| TcpListener::bind(port).ok()).collect();
        assert!(held.len() > 10);
        let taken: Vec<_> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let others = free_ports(IpAddr::from([127, 0, 0, 1]), 20, &[]).unwrap();
        assert!(others.iter().all(|port| !taken.contains(port)));
        drop(held);
        let given = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(!candidates(std::fs::read_to_string(EPHEMERAL_PORTS).ok().as_deref()).contains(&given.port()));
    }

    #[test]
    fn the_systems_range_is_left_out() {
        assert!(candidates(Some("20000\t40000\n")).iter().all(|port| *port < 20_000));
        assert_eq!(candidates(Some("1024\t65535\n")).len(), SERVER_PORTS.len());
        assert_eq!(candidates(None).len(), SERVER_PORTS.len());
    }

    #[test]
    fn promised_ports_are_left_out() {
        let (few, promised): (Vec<_>, Vec<_>) = candidates(None).into_iter().partition(|port| port % 500 == 0);
        let ports = free_ports(IpAddr::from([127, 0, 0, 1]), 10, &promised).unwrap();
        assert!(ports.iter().all(|port| few.contains(&port.port())), "{ports:?}");
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        assert!(free_ports(IpAddr::from([192, 0, 2, 1]), 1, &[]).is_err());
    }
}
