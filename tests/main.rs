//! The promises cdrelay makes, each kept by one module, against real brokers. `tests/run` starts those and runs this.
//!
//! # Breaking the promise on purpose
//!
//! Each of these changes to the code was made once, and made the tests named fail (all of the library, except where a module here is
//! named). Whoever touches one of the places can do it again: a test that does not notice is no test.
//!
//! | change | fails, among others |
//! |---|---|
//! | records are not synced (`spool/writer.rs`, `write`) | `spool::tests::model::what_was_acknowledged_comes_back_after_any_crash`, `spool::tests::promises::a_failing_disk_costs_refusals_and_nothing_acknowledged` |
//! | a request is acknowledged, and then its records are synced (`publish`) | the same two |
//! | a new segment's name is not synced (`spool/log.rs`, `begin`) | the same two |
//! | a segment that failed is written to again (`fail`) | `spool::tests::promises::what_a_killed_process_left_unsynced_is_made_durable_before_it_counts`, and in some runs the model |
//! | an event is known as a duplicate before it is durable (`encode`) | `spool::tests::promises::after_a_failure_the_disk_is_left_in_peace_for_a_while`, and the model |
//! | the removal of a segment is not synced before the next (`spool/log.rs`, `remove`) | the model |
//! | a segment is removed before the cursors are durable | `spool::tests::keeping::a_segment_goes_when_the_last_sink_has_durably_passed_it`, and in some runs the model |
//! | a new cursor's name is not synced (`spool/cursor.rs`, `PositionFile::open`) | `spool::tests::keeping::the_position_of_a_new_sink_survives_a_power_cut` |
//! | the end of the acknowledged records is not noted (`spool/writer.rs`, `publish`) | `spool::tests::damage::a_flipped_bit_in_the_last_group_commit_costs_one_record_of_a_thousand`, `spool::tests::damage::a_missing_segment_is_told_wherever_it_was` |
//! | the offset below which segments were removed is not kept (`spool/maintenance.rs`, `remove`) | `spool::tests::damage::a_missing_segment_is_told_wherever_it_was` |
//! | symbolic links are followed (`spool/disk.rs`, `open_at`) | `spool::tests::deadline::symbolic_links_in_the_directory_are_not_followed` |
//! | a deleted file takes acknowledged records (`spool/writer.rs`, `write`) | `spool::tests::deadline::a_segment_whose_name_is_deleted_takes_no_more_acknowledged_records` |
//! | a request stays in the queue of a hanging disk when its client goes (`spool/queue.rs`, `abandon`) | `spool::tests::deadline::a_client_that_goes_frees_its_memory_while_the_disk_hangs` |
//! | a read that the disk refuses is taken for damage (`spool/reader.rs`) | the model |
//! | several messages of a conversation are under way (`dispatch/gate.rs`, `enter`) | `dispatch::gate::tests::a_conversation_goes_one_by_one_and_others_pass`, `dispatch::tests::what_fails_is_tried_again_and_nothing_of_its_conversation_passes` |
//! | the cursor moves before the destination has acknowledged (`dispatch.rs`, `settle`) | `dispatch::tests::a_stop_leaves_nothing_open_below_what_was_sent`, and the one above |
//! | a failed message is not tried again (`dispatch/publish.rs`, `send`) | `dispatch::tests::what_fails_is_tried_again_and_nothing_of_its_conversation_passes` |
//! | a place that is away counts as the destination's fault (`dispatch/publish.rs`, `send`) | `dispatch::tests::places::thousands_of_events_for_missing_topics_hold_up_no_other_and_all_arrive_once_the_topics_exist` |
//! | messages for a missing place never become dead letters (`dispatch.rs`, `place_is_away`) | `dispatch::tests::places::events_for_a_missing_topic_become_dead_letters_after_max_age_and_those_for_a_partition_never` |
//! | the file of open records is not read (`dispatch/open_records.rs`) | `dispatch::tests::places::a_restart_delivers_none_of_the_settled_records_behind_a_parked_one_again` |
//! | the checksum of that file is not compared (`dispatch/open_records.rs`, `decode`) | `dispatch::open_records::tests::a_damaged_file_calls_no_open_record_settled` |
//! | large records are rendered on a thread of the runtime (`dispatch/publish.rs`, `render`) | `dispatch::tests::a_large_event_with_many_values_holds_up_no_other_task` |
//! | a partition without a leader counts as one that works (`sink/kafka/partition.rs`, `is_broken`) | `sink::kafka::partition::tests::a_partition_is_away_until_it_acknowledges_or_holds_nothing_and_has_a_leader` |
//! | a partition may hold all of librdkafka's queue (`sink/kafka/partition.rs`, `try_share`) | `sink::kafka::partition::tests::partitions_that_do_not_answer_leave_room_for_the_others` |
//! | a producer is not replaced after a fatal error (`sink/kafka/producer.rs`, `fatal_error`) | `sink::kafka::tests::a_fatal_error_rebuilds_the_producer_and_answers_for_every_message` |
//! | a refused timestamp is the message's fault (`sink/kafka.rs`, `classify`) | `sink::kafka::tests::an_error_that_may_pass_is_no_rejection` |
//! | every error of a stream is the message's fault (`sink/nats.rs`, `acknowledged`) | `sink::nats::tests::only_errors_that_no_operator_can_mend_reject_a_message` |
//! | a full subject (`discard_new_per_subject`) stops the stream (`sink/nats.rs`, `acknowledged`) | the same |
//! | a sink without any stream waits for ever (`sink/nats/stream.rs`, `no_stream`) | `sink::nats::stream::tests::a_failing_stream_stops_the_sink_only_where_it_is_the_only_one` |
//! | a stream with `no_ack` gets messages (`sink/nats/stream.rs`, `never_confirms`) | the same |
//! | a failed write to stdout counts as written (`sink/stdout.rs`, `write_all`) | `sink::stdout::tests::a_torn_line_stands_alone_and_its_retry_is_whole` |
//! | `replay --force` gives the message no id of its own (`dispatch/replay.rs`, `forced_id`) | `dispatch::replay::tests::a_forced_record_is_for_its_sink_and_has_an_id_of_its_own` |
//! | a timeout is taken for a refusal, Kafka (`classify`) | `sink::kafka::tests::a_timeout_says_nothing_about_the_message` |
//! | a timeout is taken for a refusal, NATS (`send`) | `nats_sink::a_server_that_falls_silent_times_out_and_is_used_again` |
//! | `ack = "delivered"` answers 200 whatever the sinks have (`ingress/delivery.rs`) | `delivered::while_kafka_is_down_the_answer_is_202_and_who_asks_again_learns_when_it_is_there` |
//! | it waits for the cursor instead of the record (`dispatch.rs`, `complete`) | `dispatch::tests::who_asks_learns_of_a_record_when_it_is_settled_whatever_the_cursor_says` |
//! | a stop does not wait for sinks that are down (`bridge.rs`, `sinks::drained`) | `drain::a_stop_with_time_to_drain_delivers_what_waits_for_a_broker_that_comes_back` |
//! | a drain ends before every sink has everything (`bridge/drain.rs`) | `drain::spools_left_by_a_scale_in_are_delivered_complete_and_in_order` |
//! | a changed sink starts before its former dispatcher has ended (`bridge/sinks.rs`, `change`) | `reload::load::a_hundred_reloads_fail_no_request_and_open_no_connection_of_a_sink_that_stays` |
//! | every sink is replaced by each reload (`bridge/change.rs`) | the same, and `bridge::change::tests` |
//! | new sinks are not probed before they are used (`bridge/reload.rs`, `reach`) | `reload::refused::a_wrong_configuration_changes_nothing_and_every_error_names_file_and_key` |
//! | TLS sessions outlive the authorities that they were verified by (`ingress/tls/files.rs`: one memory of sessions for all) | `tls::rotation::new_authorities_hold_for_sessions_too` |

mod analytics;
mod auth;
mod backlog;
mod bounds;
mod brokers;
mod chart;
mod clusters;
mod command_line;
mod conformance;
mod conversations;
mod damage;
mod dead_letters;
mod delivered;
mod delivery;
mod deploy;
mod drain;
mod examples;
mod explain;
mod faults;
mod field;
mod full_disk;
mod fuzz;
mod hanging_disk;
mod haproxy;
mod independence;
mod ingress;
mod kafka_faults;
mod kafka_places;
mod kafka_sink;
mod limits;
mod logging;
mod metrics;
mod monitoring;
mod nats_faults;
mod nats_sink;
mod openapi;
mod ordering;
mod outage;
mod probes;
mod proxy_protocol;
mod readme;
mod recovery;
mod redact;
mod reload;
mod replay;
mod routes;
mod routing;
mod schema_registry;
mod soak;
mod stdout;
mod stopping;
mod support;
mod tls;
