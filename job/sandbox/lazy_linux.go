package sandbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// While an image arrives (Spec.Arriving), the container's root shows its names
// and attributes, and every file is opened by the shim: runsc's gofer (see
// runsc/root.go) asks for it on a socket of its own and gets a descriptor of
// the whole file, or waits. What is missing the shim asks of the node, by way
// of whichever Supply is connected, so that a node may be restarted meanwhile.
const (
	fileLazy       = "lazy.sock"
	lazyAnnotation = "lumbung.lazy" // as in runsc/root.go
	envLazy        = "LUMBUNG_LAZY"

	lazyID      = 8    // bytes of a request's number, before its path
	maxLazyPath = 4096 // as Linux has it
	// maxLazyWaits bounds the files waited for at one time; gVisor's gofer has
	// at most five requests under way.
	maxLazyWaits = 64
)

// arrivals hands out the files of an image that arrives.
type arrivals struct {
	skel   *os.File // the container's own files, which lie over the image
	whole  *os.File // where files of the image appear, each whole
	now    func() time.Time
	failed func(error)

	mu      sync.Mutex
	wants   map[string]*wanted
	opened  []string // first opens, in their order
	seen    map[string]bool
	news    chan struct{} // closed and made anew when a want or an open is added
	err     error         // why no more files will come
	waiting int
	since   time.Time
	waited  time.Duration
}

// wanted is a file somebody waits for.
type wanted struct {
	done chan struct{} // closed when the file should be here, or err is set
}

func newArrivals(skel, whole string, now func() time.Time, failed func(error)) (*arrivals, error) {
	a := &arrivals{now: now, failed: failed, wants: map[string]*wanted{}, seen: map[string]bool{}, news: make(chan struct{})}
	var err error
	if a.skel, err = os.OpenFile(skel, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if a.whole, err = openArriving(whole); err != nil {
		return nil, errors.Join(fmt.Errorf("the folder the image arrives in: %w", err), a.skel.Close())
	}
	return a, nil
}

// openArriving opens the folder that an image arrives in. When the image becomes
// whole, it is replaced by a link to where it then is, and not there for a moment.
func openArriving(dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ENOENT) || waitChange(ctx, minLook) != nil {
			return f, err
		}
	}
}

func (a *arrivals) close() { _ = errors.Join(a.skel.Close(), a.whole.Close()) }

// serve answers gofers until ctx ends; it returns when all connections are closed.
func (a *arrivals) serve(ctx context.Context, l *net.UnixListener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if waitChange(ctx, 10*time.Millisecond) != nil { // out of descriptors
				return
			}
			continue
		}
		wg.Go(func() { a.answer(ctx, conn) })
	}
}

// answer serves one gofer.
func (a *arrivals) answer(ctx context.Context, conn *net.UnixConn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	slots := make(chan struct{}, maxLazyWaits)
	buf := make([]byte, lazyID+maxLazyPath+1)
	for {
		n, err := conn.Read(buf)
		if err != nil || n <= lazyID || n > lazyID+maxLazyPath {
			return
		}
		id, name := binary.LittleEndian.Uint64(buf), string(buf[lazyID:n])
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			f, err := a.open(ctx, name)
			a.reply(conn, id, f, err)
		})
	}
}

func (a *arrivals) reply(conn *net.UnixConn, id uint64, f *os.File, err error) {
	packet := binary.LittleEndian.AppendUint64(nil, id)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	packet = binary.LittleEndian.AppendUint32(packet, uint32(errno))
	var rights []byte
	if f != nil {
		defer func() { _ = f.Close() }()
		rights = unix.UnixRights(int(f.Fd()))
	}
	_, _, _ = conn.WriteMsgUnix(packet, rights, nil) // a gofer that is gone needs nothing
}

// open gives a file to read, when it is whole; nil for one that is the
// container's own and lies in its root.
func (a *arrivals) open(ctx context.Context, name string) (*os.File, error) {
	if !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0) {
		return nil, unix.EINVAL
	}
	own, err := openBeneath(a.skel, name, unix.O_PATH)
	if err == nil {
		return nil, own.Close()
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	for asked := false; ; asked = true {
		f, err := openBeneath(a.whole, name, unix.O_RDONLY|unix.O_NONBLOCK)
		if err == nil {
			a.note(name)
			return f, nil
		}
		if asked || !errors.Is(err, unix.ENOENT) {
			a.fail(fmt.Errorf("%s of the image cannot be read: %w", name, err))
			return nil, unix.EIO
		}
		if err := a.wait(ctx, name); err != nil {
			return nil, unix.EIO
		}
	}
}

// openBeneath opens a regular file; no link leads anywhere.
func openBeneath(dir *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), strings.TrimLeft(name, "/"), &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil //nolint:gosec // not negative
}

// note remembers the order in which files are opened.
func (a *arrivals) note(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[name] || len(a.opened) >= MaxOpened {
		return
	}
	a.seen[name] = true
	a.opened = append(a.opened, name)
	a.changed()
}

// changed wakes the suppliers. The lock is held.
func (a *arrivals) changed() {
	close(a.news)
	a.news = make(chan struct{})
}

// wait asks for a file and returns when it should be there.
func (a *arrivals) wait(ctx context.Context, name string) error {
	a.mu.Lock()
	if a.err != nil {
		defer a.mu.Unlock()
		return a.err
	}
	w := a.wants[name]
	if w == nil {
		w = &wanted{done: make(chan struct{})}
		a.wants[name] = w
		a.changed()
	}
	if a.waiting++; a.waiting == 1 {
		a.since = a.now()
	}
	a.mu.Unlock()
	var err error
	select {
	case <-w.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting--; a.waiting == 0 {
		a.waited += a.now().Sub(a.since)
	}
	return errors.Join(err, a.err)
}

// waitedFor is how long at least one file was waited for.
func (a *arrivals) waitedFor() time.Duration {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting > 0 {
		return a.waited + a.now().Sub(a.since)
	}
	return a.waited
}

// waits reports whether a file is waited for now.
func (a *arrivals) waits() bool {
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiting > 0
}

// arrived says that a file is there, if somebody waits for it.
func (a *arrivals) arrived(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.wants[name]; w != nil {
		delete(a.wants, name)
		close(w.done)
	}
}

// fail ends all waiting: a program must not go on with part of its image.
func (a *arrivals) fail(err error) {
	a.mu.Lock()
	if a.err != nil {
		a.mu.Unlock()
		return
	}
	a.err = err
	for name, w := range a.wants {
		delete(a.wants, name)
		close(w.done)
	}
	a.mu.Unlock()
	a.failed(err)
}

// lazyNews is what the shim tells a supplier: files that are waited for, and
// files opened for the first time, in that order.
// Names are bytes: not every image's are UTF-8.
type lazyNews struct {
	Wants  [][]byte `json:"wants,omitempty"`
	Opened [][]byte `json:"opened,omitempty"`
}

// lazyDone is a supplier's answer to a want.
type lazyDone struct {
	Path  []byte `json:"path"`
	Error string `json:"error,omitempty"`
}

const (
	newsOpened = 64      // opens told at one time
	maxLine    = 1 << 20 // bytes of a line either way: 128 names in base64
)

// supplied serves one supplier until its connection or ctx ends.
func (a *arrivals) supplied(ctx context.Context, cancel func(), conn net.Conn, from io.Reader) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = conn.Close() }()
	wg.Go(func() {
		defer cancel()
		a.hear(from)
	})
	told := map[string]*wanted{}
	for opened := 0; ; {
		a.mu.Lock()
		var news lazyNews
		for name, w := range a.wants {
			if told[name] != w {
				told[name] = w
				news.Wants = append(news.Wants, []byte(name))
			}
		}
		for name, w := range told {
			if a.wants[name] != w {
				delete(told, name)
			}
		}
		end := min(len(a.opened), opened+newsOpened)
		for _, name := range a.opened[opened:end] {
			news.Opened = append(news.Opened, []byte(name))
		}
		more, wake := end < len(a.opened), a.news
		opened = end
		a.mu.Unlock()
		if len(news.Wants)+len(news.Opened) > 0 {
			_ = conn.SetWriteDeadline(time.Now().Add(controlTimeout))
			if json.NewEncoder(conn).Encode(news) != nil {
				return
			}
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
	}
}

// hear takes a supplier's answers.
func (a *arrivals) hear(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue // the end of the request
		}
		var d lazyDone
		if json.Unmarshal(lines.Bytes(), &d) != nil {
			return
		}
		if d.Error != "" {
			a.fail(errors.New(d.Error))
			return
		}
		a.arrived(string(d.Path))
	}
}

// beginArrivals makes the shim hand out the files of an image that arrives.
func (s *shim) beginArrivals(ctx context.Context) (*arrivals, *net.UnixListener, error) {
	a, err := newArrivals(filepath.Join(s.dir, dirSkel), s.plan.Spec.Arriving, time.Now, s.imageFailed)
	if err != nil {
		return nil, nil, err
	}
	l, err := listenUnix(ctx, "unixpacket", filepath.Join(s.dir, fileLazy))
	if err != nil {
		a.close()
		return nil, nil, err
	}
	return a, l.(*net.UnixListener), nil
}

// imageGrace is what a program gets to end after a part of its image failed.
const imageGrace = 2 * time.Second

// imageFailed makes watchImage end a container whose image does not arrive.
func (s *shim) imageFailed(err error) {
	s.mu.Lock()
	s.failure = join(s.failure, err.Error())
	s.mu.Unlock()
	close(s.broken) // arrivals fails once
}

func (s *shim) watchImage() {
	select {
	case <-s.done:
		return
	case <-s.broken:
	}
	if s.pause(imageGrace) {
		s.kill()
	}
}
