package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Document is all that a run found, by keys such as "B1.batched.steps_per_s", in the order in which it was found.
type Document struct {
	keys   []string
	values map[string]any
	rows   []row
}

// Set records a fact or a figure. A number that cannot be is recorded as null.
func (d *Document) Set(key string, value any) {
	if f, ok := value.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
		value = nil
	}
	if d.values == nil {
		d.values = map[string]any{}
	}
	if _, again := d.values[key]; !again {
		d.keys = append(d.keys, key)
	}
	d.values[key] = value
}

// Figure is a number that was recorded; ok tells whether it was.
func (d *Document) Figure(key string) (value float64, ok bool) {
	value, ok = d.values[key].(float64)
	return value, ok
}

// MarshalJSON writes one object, its keys in their order.
func (d *Document) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range d.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(rounded(d.values[key]))
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// rounded leaves a number the digits that mean something.
func rounded(value any) any {
	f, ok := value.(float64)
	if !ok {
		return value
	}
	short, err := strconv.ParseFloat(strconv.FormatFloat(f, 'g', 5, 64), 64)
	if err != nil || math.Abs(f) >= 1e5 {
		return math.Round(f)
	}
	return short
}

// row is one line of the table for people: a figure beside its floor.
type row struct {
	name, unit       string
	ours, floor      float64
	ratio            float64
	bar              string // what the ratio is to be
	met              bool
	beside           string // the floor's name where it is not the floor's own figure
	costs, floorCost *cost
}

// judge records a row: its figures under key, with the bar and whether it is met.
func (d *Document) judge(r row) {
	d.Set(r.name+".ratio", r.ratio)
	if r.bar != "" {
		d.Set(r.name+".bar", r.bar)
		d.Set(r.name+".met", r.met)
	}
	d.rows = append(d.rows, r)
}

// Write prints the document for people.
func (d *Document) Write(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(d.rows) > 0 {
		fmt.Fprintln(t, "SCENARIO\tOURS\tFLOOR\tRATIO\tBAR\t")
	}
	var costs bool
	for _, r := range d.rows {
		costs = costs || r.costs != nil
		beside := ""
		if r.beside != "" {
			beside = " (" + r.beside + ")"
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s%s\t%.2f\t%s\t%s\n", r.name, short(r.ours), r.unit, short(r.floor), beside, r.ratio, r.bar, verdict(r))
	}
	if costs {
		fmt.Fprintln(t, "\nA STEP COSTS\tCPU µs\tPOSTGRES\tSERVER\tCLIENT\tWAL BYTES\tCOMMITS")
	}
	for _, r := range d.rows {
		if r.costs != nil {
			fmt.Fprintf(t, "%s\t%s\n", r.name, r.costs.columns())
			fmt.Fprintf(t, "  its floor\t%s\n", r.floorCost.columns())
		}
	}
	fmt.Fprintln(t)
	for _, key := range d.keys {
		if !d.shown(key) {
			fmt.Fprintf(t, "%s\t%s\n", key, plain(d.values[key]))
		}
	}
	return t.Flush()
}

// shown tells whether the table has the figure already.
func (d *Document) shown(key string) bool {
	for _, r := range d.rows {
		if rest, ok := strings.CutPrefix(key, r.name+"."); ok && (rest == "ratio" || rest == "bar" || rest == "met") {
			return true
		}
	}
	return false
}

func verdict(r row) string {
	switch {
	case r.bar == "":
		return ""
	case r.met:
		return "met"
	default:
		return "MISSED"
	}
}

func plain(value any) string {
	if f, ok := value.(float64); ok {
		return short(f)
	}
	if value == nil {
		return "-"
	}
	return fmt.Sprint(value)
}

// short writes a number with three or four digits that mean something.
func short(f float64) string {
	switch a := math.Abs(f); {
	case a >= 100:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(f, 'f', 2, 64)
	default:
		return strconv.FormatFloat(f, 'g', 3, 64)
	}
}
