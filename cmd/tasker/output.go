package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printer writes answers in one of three forms. json and yaml are the answer itself, in the JSON form of protocol buffers;
// table is for people, its headings the words of the SQL surface.
type printer struct {
	out    io.Writer
	format string
	// terminal is set when out is one; colour when it may also be painted on.
	terminal, colour bool
	documents        int
}

func newPrinter(c *cli, format string) *printer {
	terminal := isTerminal(c.stdout)
	return &printer{
		out:      c.stdout,
		format:   format,
		terminal: terminal,
		colour:   terminal && c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb",
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// print writes one answer: show is its table.
func (p *printer) print(answer proto.Message, show func() error) error {
	switch p.format {
	case "json":
		body, err := answerJSON(answer, "  ")
		if err != nil {
			return err
		}
		return p.write(string(body) + "\n")
	case "yaml":
		return p.printYAML(answer)
	}
	return show()
}

// stream writes one of many answers: json takes a line, yaml a document.
func (p *printer) stream(answer proto.Message, show func() error) error {
	if p.format != "json" {
		return p.print(answer, show)
	}
	body, err := answerJSON(answer, "")
	if err != nil {
		return err
	}
	return p.write(string(body) + "\n")
}

func (p *printer) write(text string) error {
	_, err := io.WriteString(p.out, text)
	return err
}

func (p *printer) printf(format string, args ...any) error {
	return p.write(fmt.Sprintf(format, args...))
}

// answerJSON is the JSON form of a message, zero numbers and empty strings and lists written out, so that a script need not
// know what is left out by default. protojson varies its spaces from build to build on purpose; ours are always the same.
func answerJSON(answer proto.Message, indent string) ([]byte, error) {
	body, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(answer)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if indent == "" {
		err = json.Compact(&out, body)
	} else {
		err = json.Indent(&out, body, "", indent)
	}
	return out.Bytes(), err
}

func (p *printer) printYAML(answer proto.Message) error {
	body, err := answerJSON(answer, "")
	if err != nil {
		return err
	}
	document, err := yamlNode(json.NewDecoder(bytes.NewReader(body)))
	if err != nil {
		return err
	}
	if p.documents++; p.documents > 1 {
		if err := p.write("---\n"); err != nil {
			return err
		}
	}
	encoder := yaml.NewEncoder(p.out)
	encoder.SetIndent(2)
	if err := encoder.Encode(document); err != nil {
		return err
	}
	return encoder.Close()
}

// yamlNode reads one JSON value, its keys in their order and its numbers digit by digit.
func yamlNode(decoder *json.Decoder) (*yaml.Node, error) {
	decoder.UseNumber()
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Delim:
		node := &yaml.Node{Kind: yaml.MappingNode}
		if token == '[' {
			node.Kind = yaml.SequenceNode
		}
		for decoder.More() {
			child, err := yamlNode(decoder)
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, child)
		}
		if len(node.Content) == 0 {
			node.Style = yaml.FlowStyle
		}
		_, err := decoder.Token()
		return node, err
	case string:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: token}, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: token.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(token)}, nil
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
	}
	return nil, fmt.Errorf("unexpected JSON token %v", token)
}

// table is rows of cells under headings.
type table struct {
	printer *printer
	heads   []string
	rows    [][]string
}

func (p *printer) table(heads ...string) *table { return &table{printer: p, heads: heads} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// minHead is what a heading may take of a terminal's width before it is broken at its underscores.
const minHead = 10

// lines are the heading and the rows, each column as wide as it must be. On a terminal a long heading takes several lines.
func (t *table) lines() []string {
	widths := make([]int, len(t.heads))
	for _, row := range t.rows {
		for column, cell := range row {
			widths[column] = max(widths[column], lipgloss.Width(cell))
		}
	}
	heads := make([][]string, len(t.heads))
	tall := 0
	for column, head := range t.heads {
		heads[column] = []string{head}
		if t.printer.terminal {
			heads[column] = breakHead(head, max(widths[column], minHead))
		}
		for _, part := range heads[column] {
			widths[column] = max(widths[column], lipgloss.Width(part))
		}
		tall = max(tall, len(heads[column]))
	}
	var lines []string
	for line := range tall {
		cells := make([]string, len(heads))
		for column, parts := range heads {
			if line < len(parts) {
				cells[column] = t.printer.paint(styleHead, parts[line])
			}
		}
		lines = append(lines, joinCells(cells, widths))
	}
	for _, row := range t.rows {
		lines = append(lines, joinCells(row, widths))
	}
	return lines
}

func (t *table) print() error {
	return t.printer.write(strings.Join(t.lines(), "\n") + "\n")
}

// breakHead breaks a heading after underscores into parts of at most width, where its words allow it.
func breakHead(head string, width int) []string {
	var parts []string
	part := ""
	for word := range strings.SplitAfterSeq(head, "_") {
		if part != "" && len(part)+len(word) > width {
			parts = append(parts, part)
			part = ""
		}
		part += word
	}
	return append(parts, part)
}

func joinCells(cells []string, widths []int) string {
	var line strings.Builder
	for column, cell := range cells {
		line.WriteString(cell)
		if column < len(cells)-1 {
			line.WriteString(strings.Repeat(" ", widths[column]-lipgloss.Width(cell)+2))
		}
	}
	return strings.TrimRight(line.String(), " ")
}

// live redraws lines in place on a terminal.
type live struct {
	printer *printer
	drawn   int
}

// draw replaces what was drawn before. What the terminal has no room for is left out, and said to be.
func (l *live) draw(lines []string) error {
	width, height := 80, 24
	if file, ok := l.printer.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(file.Fd())); err == nil && w > 0 && h > 2 {
			width, height = w, h
		}
	}
	if room := height - 1; len(lines) > room {
		hidden := len(lines) - (room - 1)
		lines = append(slices.Clone(lines[:room-1]), fmt.Sprintf("… and %d more", hidden))
	}
	var frame strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&frame, "\x1b[%dA", l.drawn)
	}
	frame.WriteString("\x1b[J")
	for _, line := range lines {
		frame.WriteString(ansi.Truncate(line, width, "…") + "\n")
	}
	l.drawn = len(lines)
	return l.printer.write(frame.String())
}

// Styles, by what they say.
var (
	styleHead = lipgloss.NewStyle().Bold(true)
	styleGood = lipgloss.NewStyle().Foreground(lipgloss.Color("2"))
	styleBad  = lipgloss.NewStyle().Foreground(lipgloss.Color("1"))
	styleBusy = lipgloss.NewStyle().Foreground(lipgloss.Color("6"))
	styleHand = lipgloss.NewStyle().Foreground(lipgloss.Color("3"))
	styleDim  = lipgloss.NewStyle().Faint(true)
)

// stateStyles paint the words of states, outcomes and healths.
var stateStyles = map[string]lipgloss.Style{
	"complete": styleGood, "success": styleGood, "healthy": styleGood, "true": styleGood, "connected": styleGood,
	"in_progress": styleBusy, "recovering": styleBusy, "half_open": styleBusy,
	"error": styleBad, "permanent_failure": styleBad, "blocked": styleBad, "open": styleBad,
	"retryable_failure": styleHand, "timed_out": styleHand, "lost_lease": styleHand, "resolved_manually": styleHand, "drained": styleHand,
	"held":    styleHand,
	"pending": styleDim, "cancelled": styleDim, "released": styleDim, "undelivered": styleDim, "false": styleDim, "closed": styleDim,
}

func (p *printer) paint(style lipgloss.Style, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return style.Render(text)
}

// state paints a word by what it says.
func (p *printer) state(word string) string {
	if style, ok := stateStyles[word]; ok {
		return p.paint(style, word)
	}
	return word
}

func (p *printer) yes(is bool) string { return p.state(fmt.Sprint(is)) }

// word is an enum value as the SQL surface spells it: STEP_STATE_IN_PROGRESS is in_progress, and a value that says nothing
// is empty.
func word(value protoreflect.Enum) string {
	values := value.Descriptor().Values()
	prefix := strings.TrimSuffix(string(values.ByNumber(0).Name()), "UNSPECIFIED")
	found := values.ByNumber(value.Number())
	switch {
	case value.Number() == 0:
		return ""
	case found == nil:
		return fmt.Sprint(value.Number())
	}
	return strings.ToLower(strings.TrimPrefix(string(found.Name()), prefix))
}

// enumOf finds the value that word spells so.
func enumOf[E protoreflect.Enum](text string) (E, error) {
	var zero E
	values := zero.Descriptor().Values()
	var words []string
	for i := range values.Len() {
		value, ok := zero.Type().New(values.Get(i).Number()).(E)
		if !ok || value.Number() == 0 {
			continue
		}
		if word(value) == text {
			return value, nil
		}
		words = append(words, word(value))
	}
	return zero, fmt.Errorf("%q must be one of %s", text, strings.Join(words, ", "))
}

// instant is a moment in the reader's time zone, to the millisecond. Unset is empty.
func instant(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Local().Format("2006-01-02T15:04:05.000Z07:00")
}

// seconds is a duration as the SQL surface gives it. Unset is empty.
func seconds(duration *durationpb.Duration) string {
	if duration == nil {
		return ""
	}
	text := fmt.Sprintf("%.3f", duration.AsDuration().Seconds())
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// count is a number in a cell.
func count(number int32) string { return fmt.Sprint(number) }

// oneLine keeps what others have said from breaking a table or steering a terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "�"))
}

// maxCell is how many characters of other people's prose a table shows. -o json has all of it.
const maxCell = 60

func brief(text string) string { return ansi.Truncate(oneLine(text), maxCell, "…") }

// pairs are labels in one cell.
func pairs(labels map[string]string) string {
	var all []string
	for key, value := range labels {
		all = append(all, oneLine(key+"="+value))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// parsePairs reads --label KEY=VALUE.
func parsePairs(flag string, given []string) (map[string]string, error) {
	labels := make(map[string]string, len(given))
	for _, pair := range given {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, usageError("--%s %q: must be KEY=VALUE", flag, pair)
		}
		if _, twice := labels[key]; twice {
			return nil, usageError("--%s %q: the key is given twice", flag, pair)
		}
		labels[key] = value
	}
	return labels, nil
}

// parseInstant reads a moment: RFC 3339, or a duration from now such as 10m or -24h.
func parseInstant(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // No text, no instant: the message's field stays unset.
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		ahead, durationErr := time.ParseDuration(text)
		if durationErr != nil {
			return nil, usageError("--%s %q: must be an instant such as 2026-01-31T12:00:00Z or a duration from now such as 10m", flag, text)
		}
		at = now.Add(ahead)
	}
	stamp := timestamppb.New(at)
	if err := stamp.CheckValid(); err != nil {
		return nil, usageError("--%s %q: %v", flag, text, err)
	}
	return stamp, nil
}

// parseObject reads a payload: one JSON object, from a file where the text is @FILE, from standard input where it is "-".
func (c *cli) parseObject(flag, text string) (string, error) {
	read := func(body []byte, err error) (string, error) {
		if err != nil {
			return "", fmt.Errorf("reading --%s: %w", flag, err)
		}
		return string(body), nil
	}
	var err error
	switch name, isFile := strings.CutPrefix(text, "@"); {
	case text == "":
		return "", nil
	case text == "-":
		text, err = read(io.ReadAll(c.stdin))
	case isFile:
		text, err = read(os.ReadFile(name))
	}
	if err != nil {
		return "", err
	}
	// The server is the judge of payloads; this only turns the usual slips of quoting into an answer at once.
	if !json.Valid([]byte(text)) || !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return "", &exitError{code: exitUsage, err: errors.New("--" + flag + ": must be one JSON object, @FILE or -")}
	}
	return text, nil
}
