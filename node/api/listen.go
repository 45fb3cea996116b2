package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lumbung-net/lumbung/node/client"
)

// ErrRunning says that a node already runs in the home.
var ErrRunning = errors.New("a node already runs here")

// minToken is the shortest token that is accepted over TCP.
const minToken = 16

// socket is the node's private Unix socket and the lock of its home. The lock,
// not the socket, says whether a node lives: it goes with its process.
type socket struct {
	path     string
	pointer  string // a file that names path; empty when none is needed
	own      string // a folder outside the home that holds path; empty when none
	listener net.Listener
	lock     *os.File
}

func listenSocket(ctx context.Context, home string) (*socket, error) {
	run := client.RunDir(home)
	if err := privateDir(run); err != nil {
		return nil, fmt.Errorf("prepare the API's folder: %w", err)
	}
	lock, err := lockHome(home)
	if err != nil {
		return nil, err
	}
	s := &socket{lock: lock}
	if err := s.place(home); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	// The lock is ours, so a socket that is there belongs to nobody.
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("remove the socket that a dead node left: %w", err), s.Close())
	}
	var lc net.ListenConfig
	if s.listener, err = lc.Listen(ctx, "unix", s.path); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on the API's socket %s: %w", s.path, err), s.Close())
	}
	// Its folder has kept others out since before it was there.
	if err := os.Chmod(s.path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("make the API's socket private: %w", err), s.Close())
	}
	return s, nil
}

// lockHome takes the home for this process and writes its id into the lock.
func lockHome(home string) (*os.File, error) {
	path := filepath.Join(client.RunDir(home), "api.lock")
	f, err := tryLock(path)
	if errors.Is(err, errLocked) {
		who := "another process"
		if raw, err := os.ReadFile(path); err == nil && len(raw) > 0 && len(raw) < 32 {
			who = "process " + strings.TrimSpace(string(raw))
		}
		return nil, fmt.Errorf("%w: %s holds %s; `lumbung down` stops it, or give this node a home of its own with --home", ErrRunning, who, home)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the home %s: %w", home, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return f, nil
}

// place chooses the socket's path. A home whose path is too long for a socket
// address gets a private folder elsewhere, and a file that names it.
func (s *socket) place(home string) error {
	path, fits := client.HomeSocket(home)
	s.path = path
	if fits {
		// One of an earlier node, before the home was moved here.
		err := os.Remove(client.PointerPath(home))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	abs, err := filepath.Abs(home)
	if err != nil {
		return fmt.Errorf("the home %s: %w", home, err)
	}
	name := fmt.Sprintf("lumbung-%d-%x", os.Getuid(), sha256.Sum256([]byte(abs)))[:40]
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), os.TempDir(), "/tmp"} {
		dir := filepath.Join(base, name)
		path := filepath.Join(dir, filepath.Base(s.path))
		if !filepath.IsAbs(path) || !client.SocketFits(path) || privateDir(dir) != nil {
			continue
		}
		s.path, s.own, s.pointer = path, dir, client.PointerPath(home)
		if err := os.WriteFile(s.pointer, []byte(path+"\n"), 0o600); err != nil {
			return fmt.Errorf("name the API's socket: %w", err)
		}
		return nil
	}
	return fmt.Errorf("the API's socket %s would be %d bytes long, over what a socket's path may be, and no private folder could be made in the temporary one: choose a shorter --home",
		s.path, len(s.path))
}

// privateDir makes a folder that only this user enters, or checks that it is
// one: in a shared temporary folder somebody else may have made it first.
func privateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() || !ownedByUs(st) {
		return fmt.Errorf("%s is not a folder of this user's: remove it", dir)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// Close removes what place and Listen made, then lets the home go.
func (s *socket) Close() error {
	var err error
	if s.listener != nil {
		err = ignoreClosed(s.listener.Close()) // removes the socket
	}
	if s.pointer != "" {
		err = errors.Join(err, os.Remove(s.pointer), os.Remove(s.own))
	}
	return errors.Join(err, s.lock.Close())
}

// listenLoopback listens on TCP, for callers of this machine alone.
func listenLoopback(ctx context.Context, addr, token string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("API address %q: want HOST:PORT: %w", addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("API address %q: only loopback addresses such as 127.0.0.1:4010 are served; reach it from elsewhere through ssh -L", addr)
	}
	if len(token) < minToken {
		return nil, fmt.Errorf("API address %s: over TCP a token of at least %d characters is needed", addr, minToken)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the API on %s: %w", addr, err)
	}
	// The name is what the hosts file makes of it.
	if t, ok := l.Addr().(*net.TCPAddr); !ok || !t.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("API address %q is %s here, no loopback address", addr, l.Addr()), l.Close())
	}
	return l, nil
}
