package node

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
)

// A command may end while its client still types: the exec is over at once, and
// the node is closed only when nobody reads the client's input any more.
func TestCloseWaitsForTheInputOfAnExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{}
		here, provider := net.Pipe()
		stdin, typing := io.Pipe()
		ended := make(chan int)
		go func() {
			code, err := n.joinExec(context.WithoutCancel(t.Context()), here, func() { _ = here.Close() }, api.ExecIO{
				Stdin: stdin, Stdout: io.Discard, Stderr: io.Discard, Resize: make(chan api.Size),
			})
			if err != nil {
				t.Error(err)
			}
			ended <- code
		}()
		if err := client.WriteFrame(provider, client.FrameExit, client.EncodeExit(7)); err != nil {
			t.Fatal(err)
		}
		if code := <-ended; code != 7 {
			t.Errorf("exit code %d", code)
		}
		closed := make(chan error, 1)
		go func() { closed <- n.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed with %v while the input is being read", err)
		default:
		}
		_ = typing.Close() // always nil
		if err := <-closed; err != nil {
			t.Error(err)
		}
		_ = provider.Close()
	})
}

// A renter that is gone ends its command also while its input waits for a
// program that neither reads nor prints.
func TestExecNoticesThatItsRenterIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, renter := net.Pipe()
		began, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- serveExec(t.Context(), here, here, sandbox.ExecSpec{}, sandbox.Size{}, func(ctx context.Context, _ sandbox.ExecSpec) (int, error) {
				close(began)
				<-ctx.Done()
				return 0, ctx.Err()
			})
		}()
		<-began
		if err := client.WriteFrame(renter, client.FrameStdin, []byte("nobody reads this")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the input waits for the program
		for range 3 {
			var buf []byte
			if kind, _, err := client.ReadFrame(renter, &buf); kind != client.FramePing || err != nil {
				t.Errorf("frame %d, %v", kind, err)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("ended with %v while the renter is there", err)
		default:
		}
		left := time.Now()
		_ = renter.Close()
		if err := <-ended; err == nil {
			t.Error("the last frame went to a renter that is gone")
		}
		if took := time.Since(left); took > execPing {
			t.Errorf("noticed after %s", took)
		}
		_ = here.Close()
	})
}

// A renter that takes no frame in does not keep a command's place after its end.
func TestExecDoesNotWaitForADeafRenter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, renter := net.Pipe()
		began := time.Now()
		err := serveExec(t.Context(), here, here, sandbox.ExecSpec{}, sandbox.Size{}, func(context.Context, sandbox.ExecSpec) (int, error) {
			time.Sleep(time.Minute) // pings are stuck by then
			return 3, nil
		})
		if took := time.Since(began); err == nil || took > time.Minute+execLinger {
			t.Errorf("over after %s: %v", took, err)
		}
		_, _ = here.Close(), renter.Close()
	})
}
