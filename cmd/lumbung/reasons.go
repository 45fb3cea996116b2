package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// reasonWords are a provider's reasons in people's words.
var reasonWords = map[protocol.Reason]string{
	protocol.Reason_REASON_UNSPECIFIED:      "gave no reason",
	protocol.Reason_REASON_GPU_MODEL:        "have another GPU",
	protocol.Reason_REASON_GPU_VRAM:         "too little VRAM",
	protocol.Reason_REASON_GPU_COUNT:        "too few GPUs",
	protocol.Reason_REASON_CPU:              "too few CPUs",
	protocol.Reason_REASON_MEMORY:           "too little memory",
	protocol.Reason_REASON_DISK:             "too little disk",
	protocol.Reason_REASON_PRICE:            "over your price",
	protocol.Reason_REASON_BUSY:             "busy",
	protocol.Reason_REASON_PAUSED:           "paused",
	protocol.Reason_REASON_NETWORK_POLICY:   "allow no network inside",
	protocol.Reason_REASON_PLATFORM:         "cannot run the image's platform",
	protocol.Reason_REASON_ASSET:            "take another currency",
	protocol.Reason_REASON_LIMITS:           "cannot hold such limits",
	protocol.Reason_REASON_EXPIRED:          "answered too late",
	protocol.Reason_REASON_UNKNOWN_BID:      "no longer knew their bid",
	protocol.Reason_REASON_NO_SANDBOX:       "cannot run containers",
	protocol.Reason_REASON_GPU_DEVICES:      "cannot give their GPU to a container",
	protocol.Reason_REASON_GPU_CUDA:         "too old a GPU driver",
	protocol.Reason_REASON_GPU_CAPABILITIES: "do not give that part of the GPU's driver",
	protocol.Reason_REASON_CPU_FEATURES:     "cannot go on from its checkpoints (another processor or gVisor)",
}

// reasonText turns the name of a protocol.Reason into words.
func reasonText(name string) string {
	if name == job.ReasonAvoided {
		return "failed it before"
	}
	if name == job.ReasonNoLease {
		return "cannot be given its lease"
	}
	if n, ok := protocol.Reason_value[name]; ok {
		if words, ok := reasonWords[protocol.Reason(n)]; ok {
			return words
		}
	}
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "REASON_"), "_", " "))
}

// unplaced is why nothing could be placed.
type unplaced struct {
	Heard    int            `json:"heard"`
	Reasons  map[string]int `json:"reasons,omitempty"`
	Cheapest ledger.Amount  `json:"cheapest,omitzero"`
}

// String counts the reasons, the most frequent first.
func (u unplaced) String() string {
	if u.Heard == 0 {
		return "nothing could be placed: no provider answered"
	}
	names := make([]string, 0, len(u.Reasons))
	for name := range u.Reasons {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(u.Reasons[b], u.Reasons[a]), cmp.Compare(a, b))
	})
	parts := make([]string, 0, len(names))
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%d %s", u.Reasons[name], reasonText(name)))
	}
	text := "nothing could be placed: " + plural(u.Heard, "provider") + " heard it"
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	if !u.Cheapest.IsZero() {
		text += "; cheapest that fits: " + priceText(u.Cheapest)
	}
	return text
}

// remedy is what the owner can change, by the most frequent reason.
func (u unplaced) remedy() string {
	if u.Heard == 0 {
		return "lumbung netcheck, then lumbung offers; without providers near, lumbung up --bootstrap ADDR joins a network that has some"
	}
	if !u.Cheapest.IsZero() {
		return "--max-hourly " + moneyNumber(u.Cheapest)
	}
	most, count := "", 0
	for name, n := range u.Reasons {
		if n > count || n == count && name < most {
			most, count = name, n
		}
	}
	switch protocol.Reason(protocol.Reason_value[most]) {
	case protocol.Reason_REASON_BUSY, protocol.Reason_REASON_PAUSED, protocol.Reason_REASON_EXPIRED, protocol.Reason_REASON_UNKNOWN_BID:
		return "the same again in a while; `lumbung offers` shows who is free"
	case protocol.Reason_REASON_NETWORK_POLICY:
		return "--network none: no provider that heard it lets containers reach the internet"
	}
	return "ask for less; `lumbung offers` shows what there is"
}
