package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lumbung-net/lumbung/job"
)

func TestSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lumbung.db")
	small, large := make([]byte, 300), make([]byte, 100_000)
	_, _ = rand.Read(small)
	_, _ = rand.Read(large)
	during := func(fn func(db *DB)) {
		t.Helper()
		db, err := Open(path, quiet())
		if err != nil {
			t.Fatal(err)
		}
		fn(db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(data []byte) bool {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(raw, data[:250]) || bytes.Contains(raw, data[len(data)-250:])
	}
	during(func(db *DB) {
		update(t, db, func(tx job.Tx) error {
			return errors.Join(tx.PutSecrets("a", []byte("first")), tx.PutSecrets("a", small), tx.PutSecrets("b", large), tx.PutSecrets("c", []byte("stays")))
		})
	})
	if !holds(small) || !holds(large) {
		t.Fatal("the search does not find what is stored")
	}
	during(func(db *DB) {
		view(t, db, func(tx job.Tx) error {
			for name, want := range map[string][]byte{"a": small, "b": large, "c": []byte("stays")} {
				if got, err := tx.Secrets(name); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			if err := tx.PutSecrets("d", nil); !errors.Is(err, ErrView) {
				t.Errorf("a view writes: %v", err)
			}
			return nil
		})
		update(t, db, func(tx job.Tx) error {
			return errors.Join(tx.DropSecrets("a"), tx.DropSecrets("b"), tx.DropSecrets("never there"))
		})
		view(t, db, func(tx job.Tx) error {
			for _, name := range []string{"a", "b", "never there"} {
				if got, err := tx.Secrets(name); !errors.Is(err, job.ErrNotFound) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			got, err := tx.Secrets("c")
			if string(got) != "stays" {
				t.Errorf("%q %v", got, err)
			}
			return nil
		})
	})
	if holds(small) || holds(large) {
		t.Error("what was dropped is still in the file")
	}
}
