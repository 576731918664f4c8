//! A TCP proxy that does to connections what networks do: cuts, resets, stalls, delays, refusals, silence.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::Dice;

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    Fin,
    Rst,
}

/// What new connections find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    Open,
    /// Nobody listens.
    Refusing,
    /// They are accepted, and nothing is said until the door opens.
    Mute,
}

/// What all connections are under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Weather {
    door: Door,
    is_stalled: bool,
    /// Of each piece.
    delay: Duration,
}

/// What one connection is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Pass,
    Cut(Cut),
    /// After so many more bytes towards the client, or towards the server.
    CutAfter(usize, Cut, Towards),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Towards {
    Client,
    Server,
}

type Lines = Arc<Mutex<BTreeMap<u64, watch::Sender<Order>>>>;

/// Listens on a free port of loopback; dropped, it is gone with all its connections.
pub struct FaultProxy {
    port: u16,
    weather: watch::Sender<Weather>,
    lines: Lines,
    accepting: JoinHandle<()>,
    /// Keeps the port while nobody listens.
    _holder: Socket,
}

impl FaultProxy {
    /// Before this port of loopback.
    pub fn before(target: u16) -> Self {
        let holder = bound(0).unwrap();
        let port = holder.local_addr().unwrap().as_socket().unwrap().port();
        let calm = Weather { door: Door::Open, is_stalled: false, delay: Duration::ZERO };
        let (weather, _) = watch::channel(calm);
        let lines = Lines::default();
        let first = listen(port).unwrap();
        let accepting = tokio::spawn(accept(first, target, weather.clone(), lines.clone()));
        Self { port, weather, lines, accepting, _holder: holder }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there are.
    pub fn open(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    pub fn door(&self, door: Door) {
        self.weather.send_modify(|weather| weather.door = door);
    }

    /// Nothing is read any more, or it goes on.
    pub fn stall(&self, is_stalled: bool) {
        self.weather.send_modify(|weather| weather.is_stalled = is_stalled);
    }

    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    pub fn cut_all(&self, how: Cut) -> usize {
        self.order(Order::Cut(how), |_| true)
    }

    /// Each with a chance of one in `of`.
    pub fn cut_some(&self, how: Cut, dice: &mut Dice, of: u64) -> usize {
        self.order(Order::Cut(how), |_| dice.roll(of) == 0)
    }

    /// All end in the middle of what they carry.
    pub fn cut_all_after(&self, how: Cut, towards: Towards, dice: &mut Dice, most: u64) -> usize {
        let lines = self.lines.lock().unwrap();
        for line in lines.values() {
            line.send_replace(Order::CutAfter(dice.roll(most) as usize, how, towards));
        }
        lines.len()
    }

    fn order(&self, order: Order, mut whom: impl FnMut(u64) -> bool) -> usize {
        let lines = self.lines.lock().unwrap();
        let chosen: Vec<_> = lines.iter().filter(|(id, _)| whom(**id)).collect();
        for (_, line) in &chosen {
            line.send_replace(order);
        }
        chosen.len()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort(); // and its connections, which it holds
    }
}

/// A socket with that port, which others of ours may have too: one keeps it, another listens.
fn bound(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = bound(port)?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn accept(mut listener: TcpListener, target: u16, weather: watch::Sender<Weather>, lines: Lines) {
    let port = listener.local_addr().unwrap().port();
    let mut connections = JoinSet::new();
    let mut seen = weather.subscribe();
    let mut next = 0;
    loop {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = seen.wait_for(|weather| weather.door == Door::Refusing) => break,
            };
            // A connection that is gone again, or no descriptor left for it.
            let Ok((client, _)) = accepted else { continue };
            while connections.try_join_next().is_some() {}
            let (order, orders) = watch::channel(Order::Pass);
            lines.lock().unwrap().insert(next, order);
            let line = Line { orders, weather: weather.subscribe() };
            let (lines, id) = (lines.clone(), next);
            connections.spawn(async move {
                line.carry(client, target).await;
                lines.lock().unwrap().remove(&id);
            });
            next += 1;
        }
        drop(listener);
        seen.wait_for(|weather| weather.door != Door::Refusing).await.unwrap();
        listener = listen(port).unwrap();
    }
}

/// One connection.
struct Line {
    orders: watch::Receiver<Order>,
    weather: watch::Receiver<Weather>,
}

impl Line {
    async fn carry(self, mut client: TcpStream, target: u16) {
        let mut orders = self.orders.clone();
        let mut weather = self.weather.clone();
        let reached = async {
            let _ = weather.wait_for(|weather| weather.door != Door::Mute).await;
            TcpStream::connect(("127.0.0.1", target)).await
        };
        let server = tokio::select! {
            reached = reached => reached,
            how = cut(&mut orders) => return end(&client, how),
        };
        let Ok(mut server) = server else { return end(&client, Cut::Rst) };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let how = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let flows = async {
                tokio::try_join!(
                    self.flow(from_client, to_server, Towards::Server),
                    self.flow(from_server, to_client, Towards::Client),
                )
            };
            tokio::select! {
                ended = flows => ended.err(),
                how = cut(&mut orders) => Some(how),
            }
        };
        if let Some(how) = how {
            end(&client, how);
            end(&server, how);
        }
    }

    /// Until the sender closes; an error says how both ends are to end.
    async fn flow(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, towards: Towards) -> Result<(), Cut> {
        let mut weather = self.weather.clone();
        let mut piece = vec![0; 16 * 1024];
        let mut left = None;
        loop {
            // Not even read while it is stalled, so that the sender's socket fills up.
            let _ = weather.wait_for(|weather| !weather.is_stalled).await;
            let length = from.read(&mut piece).await.map_err(|_| Cut::Rst)?;
            let _ = weather.wait_for(|weather| !weather.is_stalled).await;
            let delay = self.weather.borrow().delay;
            if delay > Duration::ZERO {
                tokio::time::sleep(delay).await;
            }
            if length == 0 {
                let _ = to.shutdown().await;
                return Ok(());
            }
            let order = *self.orders.borrow();
            if let Order::CutAfter(bytes, how, which) = order
                && which == towards
            {
                let rest = left.get_or_insert(bytes);
                if *rest <= length {
                    let _ = to.write_all(&piece[..*rest]).await;
                    return Err(how);
                }
                *rest -= length;
            }
            to.write_all(&piece[..length]).await.map_err(|_| Cut::Rst)?;
        }
    }
}

/// Resolves when it is to be cut now.
async fn cut(orders: &mut watch::Receiver<Order>) -> Cut {
    match orders.wait_for(|order| matches!(order, Order::Cut(_))).await.map(|order| *order) {
        Ok(Order::Cut(how)) => how,
        _ => Cut::Rst,
    }
}

/// The socket closes when it is dropped, and this is how.
fn end(stream: &TcpStream, how: Cut) {
    if how == Cut::Rst {
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
}

#[tokio::test]
async fn it_passes_cuts_stalls_refuses_and_says_nothing() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::before(target.local_addr().unwrap().port());
    let pair = async || {
        let (near, far) =
            tokio::join!(TcpStream::connect(("127.0.0.1", proxy.port())), async { target.accept().await });
        (near.unwrap(), far.unwrap().0)
    };
    let mut five = [0; 5];
    let (mut near, mut far) = pair().await;
    near.write_all(b"hello").await.unwrap();
    far.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
    proxy.stall(true);
    far.write_all(b"later").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), near.read_exact(&mut five)).await;
    assert!(early.is_err(), "it is stalled");
    proxy.stall(false);
    near.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"later");
    assert_eq!(proxy.open(), 1);
    assert_eq!(proxy.cut_all(Cut::Rst), 1);
    assert_eq!(near.read(&mut five).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let (mut near, mut far) = pair().await;
    proxy.cut_all_after(Cut::Fin, Towards::Client, &mut Dice(1), 5);
    far.write_all(b"halved").await.unwrap();
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    assert!(heard.len() < 6 && b"halved".starts_with(&heard), "{heard:?}");
    proxy.door(Door::Refusing);
    crate::harness::eventually("a refusal", async || {
        let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.err()?;
        (refused.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    })
    .await;
    proxy.door(Door::Mute);
    let mut near = crate::harness::eventually("an ear", async || {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.ok()
    })
    .await;
    near.write_all(b"hello").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), target.accept()).await;
    assert!(early.is_err(), "nobody is told of it");
    proxy.door(Door::Open);
    let mut far = target.accept().await.unwrap().0;
    far.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
    let port = proxy.port();
    drop((proxy, near, far));
    crate::harness::eventually("its end", async || {
        TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(())
    })
    .await;
}
