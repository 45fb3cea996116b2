//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/lumbung-net/lumbung/job"
)

// A service in a container without a network is reached from the renter's own
// loopback, through the network's streams alone.
func TestE2EPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 1})
	spec := program("serve")
	spec.Ports = []job.PortSpec{{Remote: 8080}, {Remote: 9000}}
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "serving")
	ports := w.renter.detail(t, j.ID).Job.Spec.Ports
	if len(ports) != 2 || ports[0].Local == 0 || ports[1].Local == 0 {
		t.Fatalf("the job's ports are %v", ports)
	}
	local := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i].Local) }

	t.Run("HTTP", func(t *testing.T) { tryHTTP(t, local(0)) })
	t.Run("WebSocket", func(t *testing.T) { tryWebSocket(t, local(0)) })
	t.Run("half-closed TCP", func(t *testing.T) { tryTCP(t, local(1)) })
	t.Run("nothing listens", func(t *testing.T) {
		_, err := w.renter.c.Connect(boundedBy(t, e2eWait), j.ID, 0, 1234)
		if err == nil || !strings.Contains(err.Error(), "listens") {
			t.Errorf("%v", err)
		}
	})
	t.Run("lumbung port", func(t *testing.T) {
		cmd := w.renter.command(boundedBy(t, e2eWait), w.dir, "port", j.ID, "8080", "9000")
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for i, try := range []func(*testing.T, string){tryHTTP, tryTCP} {
			line, err := lines.ReadString('\n')
			at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
			if err != nil || at == "" {
				t.Fatalf("line %d: %q %v", i, line, err)
			}
			try(t, at)
		}
		w.renter.ok(t, "stop", j.ID)
		rest, _ := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil || !strings.Contains(string(rest), "is over") {
			t.Errorf("it did not end with its job: %v %s", err, rest)
		}
	})
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) { // closed right after the job is told to be over
		conn, err := net.Dial("tcp", local(0))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil, nil
	}))
	w.settled(t)
	w.providers[0].idle(t)
}

func tryHTTP(t *testing.T, at string) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, i*10_000)
			resp, err := http.Post("http://"+at+"/size", "application/octet-stream", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if got, _ := io.ReadAll(resp.Body); string(got) != fmt.Sprint(len(body), nil) {
				t.Errorf("%d bytes arrived as %s", len(body), got)
			}
		})
	}
	wg.Wait()
	resp, err := http.Get("http://" + at + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if n, err := io.Copy(io.Discard, resp.Body); n != 64<<20 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func tryWebSocket(t *testing.T, at string) {
	t.Helper()
	c, resp, err := websocket.DefaultDialer.Dial("ws://"+at+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	defer func() { _ = c.Close() }()
	for _, text := range []string{"one", strings.Repeat("two ", 50_000), "three"} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.ReadMessage(); err != nil || string(got) != strings.ToUpper(text) {
			t.Fatalf("%d bytes came back as %d: %v", len(text), len(got), err)
		}
	}
}

func tryTCP(t *testing.T, at string) {
	t.Helper()
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "said before the end"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "SAID BEFORE THE END" {
		t.Errorf("%q %v", got, err)
	}
}
