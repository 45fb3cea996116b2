package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// crashEnv makes the test binary the child that is killed: it names the file.
const crashEnv = "LUMBUNG_STORE_CRASH_CHILD"

const crashWriters = 8

// crashChild writes records of every kind as fast as it can and prints the
// number of each once it is acknowledged, until it is killed.
func crashChild(path string) int {
	db, err := Open(path, quiet())
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var out sync.Mutex
	var group sync.WaitGroup
	for w := range crashWriters {
		group.Go(func() {
			for n := 0; ; n++ {
				id := fmt.Sprintf("%d.%d.%d", os.Getpid(), w, n)
				if err := db.Update(context.Background(), func(tx job.Tx) error { return crashWrite(tx, id) }); err != nil {
					fmt.Println("error", err)
					return
				}
				out.Lock()
				fmt.Println("ok", id)
				out.Unlock()
			}
		})
	}
	group.Wait()
	return 1
}

// crashWrite is one update whose parts belong together.
func crashWrite(tx job.Tx, id string) error {
	l := protocol.IDOf([]byte(id))
	_, logErr := tx.AppendLog(l, []job.LogRecord{{Seq: 1, Stream: 1, Time: noon, Data: []byte(id)}})
	return errors.Join(logErr,
		tx.PutJob(&job.Job{ID: id, State: job.JobRunning, Created: noon}),
		tx.PutContract(&job.Contract{ID: l, Side: job.SideRenter, State: job.Done, Job: id}),
		tx.AppendMessage(l, job.Message{Kind: protocol.KindResult, Raw: []byte(id), At: noon}),
		tx.Post(charge(l.String(), true, 0, 3)),
		tx.Emit(job.Event{Type: job.EventJob, Job: id}),
	)
}

// crashCheck reports whether an update is there, and fails when half of it is.
func crashCheck(t *testing.T, tx job.Tx, id string) bool {
	t.Helper()
	l := protocol.IDOf([]byte(id))
	_, jobErr := tx.Job(id)
	_, leaseErr := tx.Contract(l)
	_, msgErr := tx.LastMessage(l, protocol.KindResult)
	recs, err := tx.Log(l, 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	there := jobErr == nil
	if (leaseErr == nil) != there || (msgErr == nil) != there || (len(recs) == 1) != there {
		t.Fatalf("half of update %s: job %v, lease %v, message %v, %d log records", id, jobErr, leaseErr, msgErr, len(recs))
	}
	return there
}

func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	kills := 15
	if s := os.Getenv("LUMBUNG_STORE_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		kills = 3
	}
	path := filepath.Join(t.TempDir(), "lumbung.db")
	var acked []string
	for range kills {
		got := runAndKill(t, path, 1+rand.IntN(200))
		acked = append(acked, got...)
	}
	t.Logf("%d kills, %d updates acknowledged", kills, len(acked))

	db, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var jobs []*job.Job
	view(t, db, func(tx job.Tx) error {
		for _, id := range acked {
			if !crashCheck(t, tx, id) {
				t.Errorf("update %s was acknowledged and is not there", id)
			}
		}
		jobs, err = tx.Jobs(true, 0)
		for _, j := range jobs {
			crashCheck(t, tx, j.ID)
		}
		return err
	})
	// What was committed and not yet acknowledged may be there, whole.
	entries, err := db.Entries(t.Context(), EntryFilter{})
	if err != nil || len(entries) != len(jobs) {
		t.Errorf("%d entries for %d updates, %v", len(entries), len(jobs), err)
	}
	balances, err := db.Balances(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := ledger.Balances(entries)
	if err != nil || fmt.Sprint(want) != fmt.Sprint(balances[:len(want)]) || len(want) != len(balances) {
		t.Errorf("kept balances %v, entries say %v, %v", balances, want, err)
	}
	oldest, newest, err := db.EventBounds(t.Context())
	if err != nil || newest+1-oldest != uint64(min(len(jobs), DefaultEvents)) {
		t.Errorf("events %d to %d for %d updates, %v", oldest, newest, len(jobs), err)
	}
}

// runAndKill kills a child once it has acknowledged n updates, and returns all
// that it had acknowledged by then.
func runAndKill(t *testing.T, path string, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0]) //nolint:gosec // this test binary
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		id, ok := strings.CutPrefix(lines.Text(), "ok ")
		if !ok {
			t.Fatalf("the child says: %s", lines.Text())
		}
		acked = append(acked, id)
		if len(acked) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed
	if len(acked) < n {
		t.Fatalf("the child ended after %d updates", len(acked))
	}
	// The last line may have been cut by the kill; a cut id is a shorter one.
	return acked[:len(acked)-1]
}
