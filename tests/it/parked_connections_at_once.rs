//! Many parked connections whose clients speak at once, and go on speaking.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::parked_connections::{REQUEST, is_not_applicable, wait_parked};
use crate::support::wait::DEADLINE;
use crate::support::{Address, Server};

/// Reads a response, which fits into one segment.
fn read_response(mut client: &TcpStream) {
    let mut bytes = [0; 4096];
    let length = client.read(&mut bytes).expect("a response");
    assert!(bytes[..length].starts_with(b"HTTP/1.1 200"), "{length} bytes");
}

#[test]
fn parked_connections_are_answered_before_others_have_had_many_more_responses() {
    const COUNT: usize = 400;
    if is_not_applicable() {
        return;
    }
    let server = Server::start(1);
    let Address::Tcp(address) = server.address() else { panic!("a TCP address") };
    let clients: Vec<TcpStream> =
        (0..COUNT).map(|_| TcpStream::connect(address).expect("connect")).collect();
    for mut client in &clients {
        client.write_all(REQUEST.as_bytes()).expect("send");
        read_response(client);
    }
    wait_parked(&server, COUNT);
    for mut client in &clients {
        client.write_all(REQUEST.as_bytes()).expect("send");
    }
    let (mut responses, mut silent) = (0, vec![true; COUNT]);
    let began = Instant::now();
    while silent.contains(&true) {
        assert!(began.elapsed() < DEADLINE, "{responses} responses, and some clients have none");
        let mut polled: Vec<PollFd> =
            clients.iter().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::from(1000u16)).expect("poll");
        for (n, mut client) in clients.iter().enumerate() {
            if polled[n].any() == Some(true) {
                read_response(client);
                responses += 1;
                silent[n] = false;
                client.write_all(REQUEST.as_bytes()).expect("send");
            }
        }
    }
    // If 32 were woken at a time, the first would have COUNT / 32 responses when the last has one, and each 6 of them.
    assert!(responses < 4 * COUNT, "{responses} responses until each of {COUNT} clients had one");
    server.stop();
}
