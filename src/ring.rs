//! How engines on one file wake each other: by a datagram on the loopback interface, so that none has to look at the
//! file all the time. It says nothing but that a look is worth while, so a stranger's does no harm, and a lost one is
//! made up for by the look that an idle engine takes now and then.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::LazyLock;
use std::time::Duration;

/// A bell that does not ring is looked at this often, to see whether it is wanted still.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a ring says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// Something has been committed.
    Committed = 1,
    /// An application is about to commit.
    Expected = 2,
}

/// The bell of an engine.
pub(crate) struct Bell {
    socket: UdpSocket,
    port: u16,
}

impl Bell {
    /// Hangs a bell, if this process may.
    pub(crate) fn hang() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let port = socket.local_addr()?.port();
        Ok(Self { socket, port })
    }

    /// The number by which others ring it.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Waits until it rings. None if it has not for long, or has in a way that says nothing.
    pub(crate) fn wait(&self) -> Option<Ring> {
        let mut byte = [0];
        match self.socket.recv(&mut byte) {
            Ok(_) if byte[0] == Ring::Committed as u8 => Some(Ring::Committed),
            Ok(_) if byte[0] == Ring::Expected as u8 => Some(Ring::Expected),
            _ => None,
        }
    }

    /// Wakes whoever waits for it.
    pub(crate) fn mute(&self) {
        send(&[self.port], 0);
    }
}

/// Rings the bells of others.
pub(crate) fn ring(ports: &[u16], ring: Ring) {
    send(ports, ring as u8);
}

fn send(ports: &[u16], byte: u8) {
    static SENDER: LazyLock<io::Result<UdpSocket>> = LazyLock::new(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let Ok(sender) = &*SENDER else { return };
    for port in ports {
        // Who is not there is not woken; who is busy has enough to look at.
        let _ = sender.send_to(&[byte], (Ipv4Addr::LOCALHOST, *port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_and_is_muted() -> io::Result<()> {
        let bell = Bell::hang()?;
        ring(&[bell.port()], Ring::Committed);
        assert_eq!(bell.wait(), Some(Ring::Committed));
        ring(&[bell.port()], Ring::Expected);
        assert_eq!(bell.wait(), Some(Ring::Expected));
        bell.mute();
        assert_eq!(bell.wait(), None);
        Ok(())
    }
}
