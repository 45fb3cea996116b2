package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
)

// Image is an image of the node's own: what the market must know of it, and
// where it came from.
type Image struct {
	job.ImageInfo
	Layers  int       `json:"layers"`
	Created time.Time `json:"created"`
}

func (im *Image) key() string {
	if im.Name != "" {
		return im.Name
	}
	return im.ID
}

// ErrAmbiguous says that the beginning of an id is that of several.
var ErrAmbiguous = errors.New("more than one has an id that begins so; give more of it")

// PutImage keeps an image under its name, or its id when it has none. A name
// that is in use moves to the new image.
func (db *DB) PutImage(ctx context.Context, im Image) error {
	if _, err := cid.Cast(im.Root); err != nil {
		return fmt.Errorf("keep image %s: root: %w", im.key(), err)
	}
	if !strings.HasPrefix(im.ID, "sha256:") {
		return fmt.Errorf("keep image %s: the id %q is not of the form sha256:<digits>", im.key(), im.ID)
	}
	raw, err := json.Marshal(im)
	if err != nil {
		return fmt.Errorf("keep image %s: %w", im.key(), err)
	}
	return db.update(ctx, func(t *txn) error {
		_, err := t.exec(`INSERT INTO images (key, id, root, created, body) VALUES (?1, ?2, ?3, ?4, ?5)
			ON CONFLICT (key) DO UPDATE SET id = ?2, root = ?3, created = ?4, body = ?5`, im.key(), im.ID, im.Root, nanos(im.Created), raw)
		return wrap(err, "keep image %s", im.key())
	})
}

// Images lists the images, newest first.
func (db *DB) Images(ctx context.Context) (list []*Image, err error) {
	err = db.view(ctx, func(t *txn) error {
		list, err = bodies[Image](t, `SELECT body FROM images ORDER BY created DESC, key`)
		return err
	})
	return list, wrap(err, "list images")
}

// Image finds an image by its name (a missing tag is "latest"), its id, or the
// first digits of its id, four or more. ErrAmbiguous when those are of several
// images, job.ErrNotFound when there is none.
func (db *DB) Image(ctx context.Context, ref string) (im *Image, err error) {
	err = db.view(ctx, func(t *txn) error {
		im, err = t.image(ref)
		return err
	})
	return im, err
}

func (t *txn) image(ref string) (*Image, error) {
	for _, key := range []string{ref, ref + ":latest"} {
		im, err := body[Image](t, `SELECT body FROM images WHERE key = ?`, key)
		if !errors.Is(err, job.ErrNotFound) {
			return im, wrap(err, "image %s", ref)
		}
	}
	digits := strings.TrimPrefix(ref, "sha256:")
	if len(digits) < 4 || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("image %q: %w", ref, job.ErrNotFound)
	}
	// The digits are plain hexadecimal, and ; follows : in ASCII.
	list, err := bodies[Image](t, `SELECT body FROM images WHERE id >= ?1 AND id < ?2 ORDER BY id, key`, "sha256:"+digits, "sha256:"+digits+"g")
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("image %q: %w", ref, job.ErrNotFound)
	}
	if list[0].ID != list[len(list)-1].ID {
		return nil, fmt.Errorf("image %q: %w", ref, ErrAmbiguous)
	}
	return list[0], nil
}

// DeleteImage forgets an image, found as Image finds it: by its name that name
// alone, by its id all of its names. Its blocks go with the next collection.
func (db *DB) DeleteImage(ctx context.Context, ref string) error {
	return db.update(ctx, func(t *txn) error {
		im, err := t.image(ref)
		if err != nil {
			return err
		}
		query, arg := `DELETE FROM images WHERE id = ?`, im.ID
		if im.Name != "" && (ref == im.Name || ref+":latest" == im.Name) {
			query, arg = `DELETE FROM images WHERE key = ?`, im.Name
		}
		_, err = t.exec(query, arg)
		return wrap(err, "forget image %s", ref)
	})
}

// Pin is content that is kept because somebody said so.
type Pin struct {
	Root    cid.Cid   `json:"root"`
	Text    string    `json:"text,omitempty"`
	Created time.Time `json:"created"`
}

// Pin keeps a root until Unpin.
func (db *DB) Pin(ctx context.Context, root cid.Cid, text string) error {
	if !root.Defined() {
		return errors.New("pin: no content named")
	}
	return db.update(ctx, func(t *txn) error {
		_, err := t.exec(`INSERT INTO pins (root, text, created) VALUES (?1, ?2, ?3) ON CONFLICT (root) DO UPDATE SET text = ?2`,
			root.Bytes(), text, nanos(db.o.Now()))
		return wrap(err, "pin %s", root)
	})
}

// Unpin ends a pin; job.ErrNotFound when there is none.
func (db *DB) Unpin(ctx context.Context, root cid.Cid) error {
	return db.update(ctx, func(t *txn) error {
		res, err := t.exec(`DELETE FROM pins WHERE root = ?`, root.Bytes())
		if err != nil {
			return fmt.Errorf("unpin %s: %w", root, err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return fmt.Errorf("unpin %s: %w", root, errors.Join(err, job.ErrNotFound))
		}
		return nil
	})
}

// Pins lists the pins, oldest first.
func (db *DB) Pins(ctx context.Context) (list []Pin, err error) {
	err = db.view(ctx, func(t *txn) error {
		return t.each(`SELECT root, text, created FROM pins ORDER BY created, root`, nil, func(scan func(...any) error) error {
			var raw []byte
			var at int64
			var p Pin
			if err := scan(&raw, &p.Text, &at); err != nil {
				return err
			}
			p.Created = fromNanos(at)
			p.Root, err = cid.Cast(raw)
			list = append(list, p)
			return err
		})
	})
	return list, wrap(err, "list pins")
}

// maxSetting bounds one setting, in bytes of JSON.
const maxSetting = 1 << 20

// SetSetting keeps a value, as JSON, under a key.
func (db *DB) SetSetting(ctx context.Context, key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("setting %s: %w", key, err)
	}
	if len(raw) > maxSetting {
		return fmt.Errorf("setting %s: %d bytes, over %d", key, len(raw), maxSetting)
	}
	return db.update(ctx, func(t *txn) error {
		_, err := t.exec(`INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2`, key, raw)
		return wrap(err, "setting %s", key)
	})
}

// Setting reads what was kept under a key; job.ErrNotFound when nothing was.
func (db *DB) Setting(ctx context.Context, key string, into any) error {
	return db.view(ctx, func(t *txn) error {
		var raw []byte
		if err := t.get(`SELECT value FROM settings WHERE key = ?`, []any{key}, &raw); err != nil {
			return fmt.Errorf("setting %s: %w", key, err)
		}
		return wrap(json.Unmarshal(raw, into), "setting %s", key)
	})
}
