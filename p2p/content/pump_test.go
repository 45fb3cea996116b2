package content

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// A transfer between two processes of this test binary, each with a store of
// its own, to see what memory it takes. LUMBUNG_CONTENT_BYTES=4294967296 moves
// the 4 GiB of the target.
const (
	pumpEnv      = "LUMBUNG_CONTENT_PUMP"
	pumpBytesEnv = "LUMBUNG_CONTENT_BYTES"
	pumpBytes    = 400 << 20 // far more than pumpLimit, so that keeping a sixth of it fails
	pumpLimit    = 64 << 20  // of memory beyond what the process has before it moves anything
)

// syntheticImage streams n bytes of noise into a store as the one layer of an image.
func syntheticImage(ctx context.Context, s *Store, n int64) (cid.Cid, error) {
	l, err := newLoader(ctx, s, LoadOptions{}).importTar(ctx, noiseReader(11, n), func() {})
	if err != nil {
		return cid.Undef, err
	}
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, l.diff.digest())
	_, root, err := finishImage(s, []byte(config), []layerRef{l})
	return root.cid(), err
}

func TestTransferMemory(t *testing.T) {
	if testing.Short() || runtime.GOOS != "linux" {
		t.Skip("moves hundreds of MiB and reads /proc")
	}
	size := int64(pumpBytes)
	if v := os.Getenv(pumpBytesEnv); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		noErr(t, err)
		size = n
	}
	limit := int64(pumpLimit)
	if raceDetected(t) {
		limit *= 4 // its shadow of the memory
	}
	from, to := t.TempDir(), t.TempDir()
	s := openStore(t, from)
	start := time.Now()
	root, err := syntheticImage(t.Context(), s, size)
	noErr(t, err)
	noErr(t, s.Close())
	t.Logf("import %.0f MiB/s", float64(size)/(1<<20)/time.Since(start).Seconds())

	server := pump(t, "serve", from)
	stdin, err := server.StdinPipe()
	noErr(t, err)
	stdout, err := server.StdoutPipe()
	noErr(t, err)
	noErr(t, server.Start())
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatalf("server: %v", server.Wait())
	}
	fetcher := pump(t, "fetch", to, lines.Text(), root.String())
	out, err := fetcher.Output()
	noErr(t, err)
	noErr(t, stdin.Close())
	served, err := io.ReadAll(stdout)
	noErr(t, err)
	noErr(t, server.Wait())
	for side, text := range map[string]string{"sender": strings.TrimSpace(lastLine(served)), "receiver": lastLine(out)} {
		more, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		noErr(t, err)
		t.Logf("%s: at most %d MiB resident beyond those at rest", side, more>>20)
		if more > limit {
			t.Errorf("%s: %d MiB resident beyond those at rest for %d MiB", side, more>>20, size>>20)
		}
	}
	t.Logf("%s", bytes.SplitN(out, []byte("\n"), 2)[0])
	wantComplete(t, openStore(t, to), root)
}

// raceDetected says whether this binary looks for races.
func raceDetected(t *testing.T) bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("how this test was built is not known")
	}
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func pump(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	noErr(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), pumpEnv+"="+strings.Join(args, "\n"))
	cmd.Stderr = os.Stderr
	return cmd
}

// pumpMain is the helper process.
func pumpMain(spec string) error {
	args := strings.Split(spec, "\n")
	s, err := Open(args[1], Options{})
	if err != nil {
		return err
	}
	rest, err := peak()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if args[0] == "serve" {
		err = pumpServe(ctx, s)
	} else {
		err = pumpFetch(ctx, s, args[2], args[3])
	}
	err = errors.Join(err, s.Close())
	most, perr := peak()
	fmt.Println(most - rest)
	return errors.Join(err, perr)
}

func pumpServe(ctx context.Context, s *Store) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	e := NewExchange(s, nil, ExchangeOptions{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				protocol, st, err := greet(c)
				if err == nil {
					_ = e.ServeStream(ctx, "asker", protocol, st)
				}
			}()
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	err = errors.Join(err, l.Close())
	<-done
	return err
}

// dialer is a Network of one peer.
type dialer string

func (d dialer) OpenContent(ctx context.Context, _, protocol string) (Stream, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", string(d))
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, protocol+"\n")
	return tcpStream{c.(*net.TCPConn)}, err
}

func pumpFetch(ctx context.Context, s *Store, addr, root string) error {
	c, err := ParseCID(root)
	if err != nil {
		return err
	}
	start := time.Now()
	var last FetchProgress
	err = NewExchange(s, dialer(addr), ExchangeOptions{}).Fetch(ctx, c, FetchOptions{Kind: KindImage, Peers: []string{"a"}, Progress: func(p FetchProgress) { last = p }})
	fmt.Printf("fetch %.0f MiB/s, wasted %d\n", float64(last.Received)/(1<<20)/time.Since(start).Seconds(), last.Wasted)
	return err
}

// peak is the most memory this process had resident, in bytes.
func peak() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/self/status")
}
