//go:build e2e

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// counting is a job that counts, is saved every two seconds, and answers on a port.
func counting(t *testing.T) (job.Spec, string) {
	out := filepath.Join(t.TempDir(), "out")
	spec := program("counter")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: out}}
	spec.Ports = []job.PortSpec{{Remote: 8080}}
	spec.Checkpoint.Every = 2 * time.Second
	return spec, out
}

// attempts are the counts that a job has printed, by the lease that did.
func (n *testNode) attempts(t *testing.T, id string) (list [][]int) {
	t.Helper()
	last := uint64(0)
	err := n.c.Logs(boundedBy(t, e2eWait), id, client.LogQuery{Task: client.AllTasks}, func(_ int, r client.LogRecord) error {
		if r.Stream == streamRemark {
			return nil
		}
		if r.Seq <= last || len(list) == 0 {
			list = append(list, nil)
		}
		last = r.Seq
		for line := range strings.Lines(string(r.Data)) {
			c, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "count ")))
			if err != nil {
				return fmt.Errorf("line %q: %w", line, err)
			}
			list[len(list)-1] = append(list[len(list)-1], c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// inOrder checks that each attempt counts without a gap.
func inOrder(t *testing.T, attempts [][]int) {
	t.Helper()
	for i, list := range attempts {
		for k := 1; k < len(list); k++ {
			if list[k] != list[k-1]+1 {
				t.Errorf("attempt %d: %d after %d", i, list[k], list[k-1])
			}
		}
	}
}

// countAt asks the job for its count on the renter's own port, and says then.
func countAt(t *testing.T, port uint16, then string) int {
	t.Helper()
	var count int
	err := poll(boundedBy(t, e2eWait), func() (bool, error) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return false, err // the port itself stays
		}
		if err != nil {
			return false, nil // reset: nobody is behind it yet
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // it may lead to one that is gone
			return false, err
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return false, nil // nobody is behind it yet
		}
		if count, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
			return false, err
		}
		_, err = io.WriteString(conn, then+"\n")
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// counterStep is how long the counting program takes for one count, at least.
const counterStep = 50 * time.Millisecond

// awaitCheckpoint waits for a checkpoint that was begun after a moment.
func (n *testNode) awaitCheckpoint(t *testing.T, id string, after time.Time) {
	t.Helper()
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) {
		list := n.detail(t, id).Tasks[0].Checkpoints
		return len(list) > 0 && list[0].At.After(after), nil
	}))
}

// runsOn is the provider that a job runs on.
func (w *world) runsOn(t *testing.T, id string) *testNode {
	t.Helper()
	return w.by(t, w.renter.detail(t, id).Tasks[0].Provider)
}

// A machine dies with all that is on it: its job goes on elsewhere from its last
// checkpoint, at the same local port, and its bill goes on.
func TestE2ECheckpointMachineLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 4 * time.Second})
	spec, out := counting(t)
	spec.Retry = job.RetrySpec{Given: true, AvoidFailed: true} // a move is none
	j := w.renter.submit(t, spec)
	port := w.renter.detail(t, j.ID).Job.Spec.Ports[0].Local
	w.renter.awaitLine(t, j.ID, "count 40")
	w.renter.awaitCheckpoint(t, j.ID, time.Now())
	at, before := time.Now(), countAt(t, port, "on")
	first := w.runsOn(t, j.ID)
	first.kill()
	killAll(first.containers())
	most := before + int(time.Since(at)/counterStep) + 1
	w.renter.await(t, "the move", func(e client.Event) bool {
		return e.Job == j.ID && e.Type == job.EventNotice && strings.Contains(e.Text, "goes on from its checkpoint")
	})
	after := countAt(t, port, "end")
	d := w.renter.done(t, j.ID)
	attempts := w.renter.attempts(t, j.ID)
	inOrder(t, attempts)
	if len(attempts) != 2 || attempts[0][0] != 1 || attempts[1][0] <= 40 || attempts[1][0] > most {
		t.Errorf("%d attempts, the second from %v on; the port said %d before the loss", len(attempts), attempts[len(attempts)-1][:1], before)
	}
	if after < attempts[1][0] {
		t.Errorf("the port said %d of a program that went on from %d", after, attempts[1][0])
	}
	if task := d.Tasks[0]; task.Moves != 1 || task.Retries != 0 || len(task.Checkpoints) != 0 {
		t.Errorf("%+v", task)
	}
	last := attempts[1][len(attempts[1])-1]
	if got := outFile(t, out, "count"); got != strconv.Itoa(last) {
		t.Errorf("the output says %s after %d", got, last)
	}
	must(t, first.start()) // it hears that it was given up
	if total := w.settled(t); d.Job.Spent.Cmp(total) != 0 || len(ran(d)) != 2 {
		t.Errorf("%d leases ran; the job cost %s, the journals say %s", len(ran(d)), d.Job.Spent, total)
	}
	for _, p := range w.providers {
		p.idle(t)
	}
}

// A provider that is drained moves its jobs: not a step is lost or done twice.
func TestE2ECheckpointDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 4 * time.Second})
	spec, out := counting(t)
	spec.Checkpoint.Every = time.Hour // the last one is the only one
	spec.Private = true
	j := w.renter.submit(t, spec)
	port := w.renter.detail(t, j.ID).Job.Spec.Ports[0].Local
	w.renter.awaitLine(t, j.ID, "count 20")
	first := w.runsOn(t, j.ID)
	first.ok(t, "drain")
	first.idle(t)
	countAt(t, port, "end")
	d := w.renter.done(t, j.ID)
	attempts := w.renter.attempts(t, j.ID)
	if len(attempts) != 2 {
		t.Fatalf("%d attempts", len(attempts))
	}
	all := append(attempts[0], attempts[1]...)
	inOrder(t, [][]int{all})
	if all[0] != 1 || len(attempts[0]) < 20 || outFile(t, out, "count") != strconv.Itoa(all[len(all)-1]) {
		t.Errorf("from %d to %d, %d of them before the drain", all[0], all[len(all)-1], len(attempts[0]))
	}
	if task := d.Tasks[0]; task.Moves != 1 || task.Retries != 0 {
		t.Errorf("%+v", task)
	}
	if total := w.settled(t); d.Job.Spent.Cmp(total) != 0 {
		t.Errorf("the job cost %s, the journals say %s", d.Job.Spent, total)
	}
}
