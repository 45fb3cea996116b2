//go:build e2e && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// line is a link between two network namespaces, with a delay and a rate, for
// kernels without netem: each namespace has a tun device, and this process takes
// every packet from one to the other, half a round trip later and no faster than
// the rate. What would wait longer than lineQueue is dropped, as by a router.
type line struct {
	rtt  time.Duration
	rate float64 // bytes a second, each way
	ends [2]lineEnd
	sent [2]atomic.Int64 // by each end, and not dropped
	wg   sync.WaitGroup
}

const (
	lineQueue = 100 * time.Millisecond
	lineMTU   = 1500
	lineEarly = 500 * time.Microsecond // not worth a timer
)

// lineEnd is one namespace.
type lineEnd struct {
	ip  string
	ns  *os.File
	tun *os.File
}

func newLine(t testing.TB, rtt time.Duration, rate float64) *line {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may make network namespaces")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	l := &line{rtt: rtt, rate: rate}
	for i := range l.ends {
		e := &l.ends[i]
		e.ip = fmt.Sprintf("10.77.0.%d", i+1)
		must(t, onThread(e.open))
		t.Cleanup(func() { _ = e.ns.Close() })
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		for i := range l.ends {
			_ = l.ends[i].tun.Close()
		}
		l.wg.Wait()
	})
	for i := range l.ends {
		l.carry(ctx, i)
	}
	return l
}

// onThread runs fn on a thread of its own, which ends with it, so that what fn
// does to its thread's namespaces hurts nobody.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// in runs fn in the namespace; processes that it starts are there too.
func (e *lineEnd) in(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(e.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return fn()
	})
}

// open makes the namespace and the device in it.
func (e *lineEnd) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	var err error
	if e.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open the tun device: %w", err)
	}
	const name = "line0"
	err = ask(fd, unix.TUNSETIFF, name, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI); return nil })
	e.tun = os.NewFile(uintptr(fd), "tun") // not before: it cannot be polled until it is a device
	if err != nil {
		return errors.Join(err, e.tun.Close())
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	up := func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }
	address := func(ip string) func(*unix.Ifreq) error {
		a := netip.MustParseAddr(ip).As4()
		return func(r *unix.Ifreq) error { return r.SetInet4Addr(a[:]) }
	}
	for _, step := range []struct {
		request uint
		name    string
		set     func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFFLAGS, "lo", up},
		{unix.SIOCSIFADDR, name, address(e.ip)},
		{unix.SIOCSIFNETMASK, name, address("255.255.255.0")},
		{unix.SIOCSIFMTU, name, func(r *unix.Ifreq) error { r.SetUint32(lineMTU); return nil }},
		{unix.SIOCSIFFLAGS, name, up},
	} {
		if err := ask(s, step.request, step.name, step.set); err != nil {
			return err
		}
	}
	return nil
}

// ask sets something of a network device.
func ask(fd int, request uint, device string, set func(*unix.Ifreq) error) error {
	r, err := unix.NewIfreq(device)
	if err == nil {
		err = set(r)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, request, r)
	}
	if err != nil {
		return fmt.Errorf("set up network device %s (request %#x): %w", device, request, err)
	}
	return nil
}

// packet is a packet on its way.
type packet struct {
	data []byte
	due  time.Time
}

// carry takes the packets of one end to the other.
func (l *line) carry(ctx context.Context, from int) {
	way := make(chan packet, 16<<10)
	l.wg.Go(func() {
		defer close(way)
		buf := make([]byte, lineMTU+64)
		var free time.Time
		for {
			n, err := l.ends[from].tun.Read(buf)
			if err != nil {
				return
			}
			now := time.Now()
			if free.Before(now) {
				free = now
			}
			if free.Sub(now) > lineQueue {
				continue
			}
			free = free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			select {
			case way <- packet{append([]byte(nil), buf[:n]...), free.Add(l.rtt / 2)}:
				l.sent[from].Add(int64(n))
			default: // so many small ones: dropped
			}
		}
	})
	l.wg.Go(func() {
		for p := range way {
			if d := time.Until(p.due); d > lineEarly {
				t := time.NewTimer(d)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
				}
			}
			_, _ = l.ends[1-from].tun.Write(p.data) // a packet that is lost is lost
		}
	})
}

// The line carries what it says it does, and takes its time.
func TestE2ELine(t *testing.T) {
	const rtt, rate, size = 40 * time.Millisecond, 4e6, 2_000_000
	l := newLine(t, rtt, rate)
	var ln net.Listener
	must(t, l.ends[1].in(func() (err error) {
		ln, err = new(net.ListenConfig).Listen(t.Context(), "tcp", l.ends[1].ip+":0")
		return err
	}))
	defer func() { _ = ln.Close() }()
	got := make(chan int64, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- -1
			return
		}
		n, _ := io.Copy(io.Discard, c)
		_ = c.Close()
		got <- n
	}()
	began := time.Now()
	var c net.Conn
	must(t, l.ends[0].in(func() (err error) {
		c, err = (&net.Dialer{Timeout: e2eWait}).DialContext(t.Context(), "tcp", ln.Addr().String())
		return err
	}))
	if took := time.Since(began); took < rtt {
		t.Errorf("connected after %s", took)
	}
	began = time.Now()
	_, err := c.Write(noise(size))
	must(t, err)
	must(t, c.Close())
	if n := <-got; n != size {
		t.Errorf("%d bytes of %d arrived", n, size)
	}
	if took := time.Since(began); took < time.Second*size/rate {
		t.Errorf("%d bytes took %s", size, took)
	}
	if n := l.sent[0].Load(); n < size {
		t.Errorf("the line counted %d bytes of %d", n, size)
	}
}
