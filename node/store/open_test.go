package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/lumbung-net/lumbung/job"
)

func TestFileIsForItsOwnerAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes on Windows")
	}
	db := openTest(t, quiet())
	update(t, db, func(tx job.Tx) error { return tx.PutJob(&job.Job{ID: "j"}) })
	files, err := filepath.Glob(db.Path() + "*")
	if err != nil || len(files) < 3 { // the file, its log, its index, the lock
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if st, err := os.Stat(filepath.Dir(db.Path())); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", st.Mode(), err)
	}
}

func TestSecondOpenNamesTheHolder(t *testing.T) {
	db := openTest(t, quiet())
	_, err := Open(db.Path(), quiet())
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) || !strings.Contains(err.Error(), "lumbung down") {
		t.Errorf("%v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(db.Path(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestPathsWithOddCharacters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%41&é", "lumbung.db")
	if runtime.GOOS == "windows" {
		path = filepath.Join(t.TempDir(), "a b#d%41&é", "lumbung.db")
	}
	db, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestWhatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, quiet()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), file) {
		t.Errorf("no database: %v", err)
	}
	if _, err := Open(filepath.Join(file, "lumbung.db"), quiet()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %v", err)
	}
}

func TestNewerFormatIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l.db")
	db, err := open(path, quiet(), append(append([]string{}, migrations...), `CREATE TABLE future (x INTEGER)`))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, quiet()); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), fmt.Sprintf("format %d", len(migrations)+1)) {
		t.Errorf("%v", err)
	}
}

func TestFixtureOfFormat1IsRead(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("testdata", "v1.db"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "l.db")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	view(t, db, func(tx job.Tx) error {
		if !crashCheck(t, tx, "fixture") {
			t.Error("the job of the fixture is not there")
		}
		return nil
	})
	if b, err := db.Balances(t.Context()); err != nil || len(b) != 2 {
		t.Errorf("balances %v, %v", b, err)
	}
	if _, newest, err := db.EventBounds(t.Context()); err != nil || newest != 1 {
		t.Errorf("newest event %d, %v", newest, err)
	}
	var v string
	if err := db.Setting(t.Context(), "provider.state", &v); err != nil || v != "paused" {
		t.Errorf("setting %q, %v", v, err)
	}
	if im, err := db.Image(t.Context(), "tiles"); err != nil || im.Layers != 2 {
		t.Errorf("image %+v, %v", im, err)
	}
	wantRoots(t, db, root(t, "fixture image").String(), root(t, "fixture hold").String(), root(t, "fixture pin").String())
}

func TestMigrationIsWholeOrNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l.db")
	db, err := open(path, quiet(), migrations)
	if err != nil {
		t.Fatal(err)
	}
	update(t, db, func(tx job.Tx) error { return crashWrite(tx, "kept") })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	next := append(append([]string{}, migrations...), `ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT 'x'; CREATE TABLE extra (a INTEGER)`)
	broken := append(append([]string{}, next...), `CREATE TABLE half (a INTEGER); CREATE TABLE jobs (oops)`)
	if _, err := open(path, quiet(), broken); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("from format %d to %d", len(next), len(broken))) {
		t.Fatalf("a broken migration: %v", err)
	}
	for range 2 { // the second time there is nothing to do
		db, err = open(path, quiet(), next)
		if err != nil {
			t.Fatal(err)
		}
		view(t, db, func(tx job.Tx) error {
			if !crashCheck(t, tx, "kept") {
				t.Error("the migration lost a job")
			}
			var n int
			return tx.(*txn).get(`SELECT count(*) FROM jobs WHERE note = 'x'`, nil, &n)
		})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// limitPages makes the disk full for the writer.
func limitPages(t *testing.T, db *DB, more int) {
	t.Helper()
	err := db.update(t.Context(), func(x *txn) error {
		var pages int
		if err := x.get(`PRAGMA page_count`, nil, &pages); err != nil {
			return err
		}
		if more < 0 {
			pages = 1 << 30
		}
		var got int
		return x.get(fmt.Sprintf(`PRAGMA max_page_count = %d`, pages+more), nil, &got)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	db := openTest(t, quiet())
	limitPages(t, db, 8)
	// Many small updates and large ones at once: each that is reported well is
	// there, each other is not, and the error is clear.
	var mu sync.Mutex
	good, failed := []string{}, []string{}
	var group sync.WaitGroup
	for w := range 16 {
		group.Go(func() {
			for i := range 20 {
				id := fmt.Sprintf("%d-%d", w, i)
				err := db.Update(t.Context(), func(tx job.Tx) error {
					if err := crashWrite(tx, id); err != nil {
						return err
					}
					return tx.PutTask(&job.TaskRecord{Job: id, Reason: strings.Repeat("x", 100*i)})
				})
				mu.Lock()
				if err == nil {
					good = append(good, id)
				} else {
					failed = append(failed, id)
					if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "free space") {
						t.Errorf("update %s: %v", id, err)
					}
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(failed) == 0 {
		t.Fatal("the disk was never full")
	}
	limitPages(t, db, -1)
	view(t, db, func(tx job.Tx) error {
		for _, id := range good {
			if !crashCheck(t, tx, id) {
				t.Errorf("update %s was reported well and is not there", id)
			}
		}
		for _, id := range failed {
			if crashCheck(t, tx, id) {
				t.Errorf("update %s was reported failed and is there", id)
			}
		}
		return nil
	})
	update(t, db, func(tx job.Tx) error { return crashWrite(tx, "after") })
	t.Logf("%d updates went well, %d failed", len(good), len(failed))
}

func TestReadOnlyFile(t *testing.T) {
	db := openTest(t, quiet())
	err := db.update(t.Context(), func(x *txn) error {
		_, err := x.c.c.ExecContext(context.Background(), `PRAGMA query_only = 1`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(tx job.Tx) error { return tx.PutJob(&job.Job{ID: "j"}) })
	if !errors.Is(err, ErrReadOnly) {
		t.Errorf("%v", err)
	}
}
