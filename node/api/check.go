package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// What requests must hold beyond their schema.

func refuse(format string, args ...any) error {
	return badRequest(http.StatusUnprocessableEntity, "bad_request", fmt.Sprintf(format, args...))
}

func needed(name, value string, limit int) error {
	switch {
	case strings.TrimSpace(value) == "":
		return refuse("%s: missing", name)
	case len(value) > limit:
		return refuse("%s: %d bytes long, over %d", name, len(value), limit)
	}
	return nil
}

func between(name string, v, low, high time.Duration) error {
	if v < low || v > high {
		return refuse("%s: %s is not between %s and %s", name, v, low, high)
	}
	return nil
}

const maxPath = 4096

// absolute demands a path that means the same to the node as to its caller.
func absolute(name, path string) error {
	if err := needed(name, path, maxPath); err != nil {
		return err
	}
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return refuse("%s: %q is no absolute path", name, path)
	}
	return nil
}

func checkSubmit(r *client.SubmitRequest) error {
	r.Spec = r.Spec.WithDefaults()
	if err := r.Spec.Validate(); err != nil {
		return err
	}
	if err := r.Secrets.Validate(); err != nil {
		return refuse("secrets: %v", err)
	}
	if len(r.Key) > 200 {
		return refuse("key: %d bytes long, over 200", len(r.Key))
	}
	return absolute("dir", r.Dir)
}

func checkOutputs(r client.OutputsRequest) error {
	if r.Task < client.AllTasks {
		return refuse("task: %d is neither a task nor -1 for all", r.Task)
	}
	if r.Dest == "" {
		return nil
	}
	return absolute("dest", r.Dest)
}

// checkImage lets an image's path have the prefix that names its form, or be a
// name in a registry or a store.
func checkImage(r client.PathRequest) error {
	_, path, local := content.CutImageForm(r.Path)
	if len(r.Name) > maxImageName {
		return refuse("name: %d bytes long, over %d", len(r.Name), maxImageName)
	}
	if len(r.Platform) > maxImageName {
		return refuse("platform: %d bytes long, over %d", len(r.Platform), maxImageName)
	}
	if !local {
		return needed("path", path, maxPath)
	}
	return absolute("path", path)
}

const (
	maxImageName = 300
	maxFiles     = 1 << 12
)

func checkFrom(r client.FromRequest) error {
	switch {
	case len(r.Name) > maxImageName:
		return refuse("name: %d bytes long, over %d", len(r.Name), maxImageName)
	case len(r.Files) > maxFiles:
		return refuse("files: %d of them, over %d", len(r.Files), maxFiles)
	}
	for _, f := range r.Files {
		if err := absolute("files", f.From); err != nil {
			return err
		}
	}
	return absolute("program", r.Program)
}

func checkExec(r client.ExecRequest) error {
	const maxSize = 1<<16 - 1
	switch {
	case len(r.Command) == 0 || r.Command[0] == "":
		return refuse("command: missing")
	case r.Task < 0:
		return refuse("task: %d is no task", r.Task)
	case r.Rows < 0 || r.Cols < 0 || r.Rows > maxSize || r.Cols > maxSize:
		return refuse("rows, cols: a terminal has between 0 and %d of each", maxSize)
	}
	return nil
}

func checkPrices(r client.PriceRequest) error {
	check := func(name, v string) error {
		if v == "" {
			return nil
		}
		if _, err := ledger.ParseAmount(job.Asset, clip(v, 64)); err != nil {
			return refuse("%s: %v", name, err)
		}
		return nil
	}
	if err := check("cpu", r.CPU); err != nil {
		return err
	}
	if err := check("gpu", r.GPU); err != nil {
		return err
	}
	for model, v := range r.By {
		if v == "" {
			return refuse("by_model.%s: missing", model)
		}
		if err := check("by_model."+model, v); err != nil {
			return err
		}
	}
	return nil
}

// document is the OpenAPI document as it is served and committed.
func document(api huma.API) []byte {
	raw, err := json.Marshal(api.OpenAPI())
	if err != nil {
		panic(fmt.Sprintf("api: encode the OpenAPI document: %v", err)) // made of the code alone
	}
	var buf bytes.Buffer
	if err := json.Indent(&buf, raw, "", "  "); err != nil {
		panic(fmt.Sprintf("api: indent the OpenAPI document: %v", err))
	}
	buf.WriteByte('\n')
	return buf.Bytes()
}
